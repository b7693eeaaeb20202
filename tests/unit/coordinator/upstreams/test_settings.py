"""A router's file: what of LiteLLM's is read as it is, and what is refused by name."""

from __future__ import annotations

import pytest
import yaml

from coordinator.upstreams.settings import (
    Provider,
    Strategy,
    check_own,
    names_of,
    read_settings,
)
from protocol.errors import ConfigError

LITELLM = """
model_list:
  - model_name: chat
    litellm_params:
      model: hosted_vllm/their/model
      api_base: http://10.0.0.1:8000/v1/
      rpm: 60
      tpm: 100000
      timeout: 30
      stream_timeout: "5"
  - model_name: chat
    litellm_params:
      model: openai/gpt-4o-mini
      api_key: os.environ/MY_KEY
      order: 2
    model_info: {id: spill}
  - model_name: long
    litellm_params: {model: claude-sonnet-4-5, max_parallel_requests: 3}
  - model_name: mine
    litellm_params: {model: baton/tiny, weight: 2}
router_settings:
  routing_strategy: simple-shuffle
  num_retries: 1
  allowed_fails: 0
  cooldown_time: 12.5
  retry_after: 1
  fallbacks: [{chat: [long, mine]}]
  context_window_fallbacks: [{chat: [long]}]
  model_group_alias: {gpt: chat}
litellm_settings:
  request_timeout: 90
  drop_params: true
  default_fallbacks: [mine]
"""
VARIABLES = {"MY_KEY": "sk-1", "ANTHROPIC_API_KEY": "sk-2"}


def read(tmp_path, text, variables=VARIABLES):
    file = tmp_path / "router.yaml"
    file.write_text(text, encoding="utf-8")
    return read_settings(file, variables)


def test_a_file_of_litellm_is_read_as_it_is(tmp_path):
    settings = read(tmp_path, LITELLM)
    first, spill, long, mine = settings.deployments
    assert (first.provider, first.model) == (Provider.HOSTED_VLLM, "their/model")
    assert (first.api_base, first.api_key) == ("http://10.0.0.1:8000/v1", "")
    assert (first.rpm, first.tpm, first.timeout_s, first.first_token_s) == (60, 100000, 30, 5)
    assert (spill.deployment_id, spill.api_key, spill.order) == ("spill", "sk-1", 2)
    assert spill.api_base == "https://api.openai.com/v1"
    assert (long.provider, long.model, long.api_key) == (
        Provider.ANTHROPIC,
        "claude-sonnet-4-5",
        "sk-2",
    )
    assert (long.max_parallel_requests, long.timeout_s) == (3, 90)
    assert (mine.is_own, mine.weight, mine.drops_params) == (True, 2, True)
    assert settings.strategy is Strategy.BY_WEIGHT
    assert (settings.num_retries, settings.allowed_fails, settings.cooldown_s) == (1, 0, 12.5)
    assert settings.fallbacks == {"chat": ("long", "mine"), "*": ("mine",)}
    assert settings.context_fallbacks == {"chat": ("long",)}
    assert names_of(settings) == ("chat", "long", "mine", "gpt")
    check_own(settings, ["tiny"])
    with pytest.raises(ConfigError, match=r"'tiny'.*served: other"):
        check_own(settings, ["other"])


def test_no_key_is_in_what_is_printed_of_it(tmp_path):
    told = repr(read(tmp_path, LITELLM))
    assert "sk-1" not in told
    assert "sk-2" not in told


GOOD = {"model": "openai/m", "api_base": "http://h/v1", "api_key": "sk-secret"}


def one(**params):
    kept = {name: value for name, value in (GOOD | params).items() if value is not None}
    return {"model_list": [{"model_name": "g", "litellm_params": kept}]}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([], "must be a mapping"),
        ({}, "model_list must be a list"),
        ({"model_list": []}, "model_list must be a list"),
        (one() | {"general_settings": {}}, "general_settings is LiteLLM"),
        (one(azure_ad_token="x"), r"litellm_params: azure_ad_token is not known here"),
        (one(rpm=-1), "rpm must be a number of at least 1"),
        (one(rpm=1.5), "rpm must be a whole number"),
        (one(rpm="many"), "rpm must be a number"),
        (one(rpm=True), "rpm must be a number"),
        (one(rpm=10**400), "rpm is too large"),
        (one(weight=float("nan")), "weight must be a number"),
        (one(timeout=float("inf")), "timeout must be a number"),
        (one(model=None), "model is missing"),
        (one(model=7), "model must be a text"),
        (one(model="bedrock/claude"), "model must begin with one of baton/"),
        (one(model="openai/"), "model must begin with one of"),
        (one(api_base="ftp://h"), "api_base must be a URL"),
        (one(api_base="http://me:sk-secret@h/v1"), "must hold no credentials"),
        (one(api_base="http://h/v1?key=sk-secret"), "must hold no credentials"),
        (one(base_url="http://other"), "base_url and api_base say the same"),
        (one(model="baton/m"), "api_base makes no sense"),
        (one(model="hosted_vllm/m", api_base=None), "api_base is missing"),
        (one(api_key="os.environ/NOT_SET"), "environment variable NOT_SET"),
        (one(api_key="sk-secret\nx"), "api_key must be printable"),
        (one(api_base=None, api_key=None), "api_key is missing, and OPENAI_API_KEY"),
        (one(model="openai/*"), r"model must be one name, and no pattern: 'openai/\*'"),
        (one(timeout=0), "timeout must be more than 0"),
        (one(stream_timeout=0), "stream_timeout must be more than 0"),
        (one() | {"router_settings": {"timeout": 0}}, "timeout must be more than 0"),
        (one() | {"litellm_settings": {"request_timeout": 0}}, "request_timeout must be more"),
        (one(extra_headers={"x-a": "sk-secret\nx-b: c"}), "extra_headers.'x-a' must be"),
        (one(extra_headers={"x-a": "schlüssel"}), "extra_headers.'x-a' must be"),
        (one(extra_headers={"x a": "b"}), "extra_headers.'x a' must be"),
        (one(drop_params="yes"), "drop_params must be true or false"),
        (one() | {"router_settings": {"routing_strategy": "usage-based"}}, "routing_strategy"),
        (one() | {"router_settings": {"redis_host": "h"}}, "redis_host is not known"),
        (one() | {"router_settings": {"fallbacks": {"g": ["h"]}}}, "fallbacks must be a list"),
        (one() | {"router_settings": {"fallbacks": [{"g": "h"}]}}, "must be a list of names"),
        (one() | {"router_settings": {"fallbacks": [{"g": ["h"]}]}}, "names 'h'"),
        (one() | {"router_settings": {"model_group_alias": {"a": "b"}}}, "names 'b'"),
        (one() | {"litellm_settings": {"callbacks": ["x"]}}, "callbacks is not known"),
        ({"model_list": [{"model_name": "*", "litellm_params": GOOD}]}, "model_name must be one"),
        ({"model_list": [{"litellm_params": GOOD}]}, r"model_list\[0\]: model_name is missing"),
        ({"model_list": [{"model_name": "g", "tags": []}]}, "tags is not known|model is missing"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, values, told):
    with pytest.raises(ConfigError, match=told) as caught:
        read(tmp_path, yaml.safe_dump(values), {})
    assert "sk-secret" not in str(caught.value)
    assert "router.yaml" in str(caught.value)


@pytest.mark.parametrize("ending", ["\r", "\n", "ü"])
def test_a_variable_that_holds_no_header_is_named(tmp_path, ending):
    variables = {"OPENAI_API_KEY": f"sk-secret{ending}"}
    told = "api_key, which is OPENAI_API_KEY, must be printable text"
    with pytest.raises(ConfigError, match=told) as caught:
        read(tmp_path, yaml.safe_dump(one(api_base=None, api_key=None)), variables)
    assert "sk-secret" not in str(caught.value)


def test_an_order_of_nothing_comes_before_that_of_one(tmp_path):
    entries = [{"model_name": "g", "litellm_params": GOOD | order} for order in ({}, {"order": 0})]
    settings = read(tmp_path, yaml.safe_dump({"model_list": entries}))
    assert [one.order for one in settings.deployments] == [1, 0]


def test_two_deployments_of_one_id_are_refused(tmp_path):
    entries = [
        {"model_name": "g", "litellm_params": GOOD, "model_info": {"id": "same"}} for _ in "ab"
    ]
    with pytest.raises(ConfigError, match="'same' is there twice"):
        read(tmp_path, yaml.safe_dump({"model_list": entries}))


@pytest.mark.parametrize("text", ["[", "a: b: c", "\x00", "- &a [*a]\n", "x: " + "[" * 5000])
def test_what_is_no_yaml_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match=r"router\.yaml"):
        read(tmp_path, text)


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(tmp_path / "none.yaml", {})
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(tmp_path, {})
    (tmp_path / "huge.yaml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="larger than"):
        read_settings(tmp_path / "huge.yaml", {})

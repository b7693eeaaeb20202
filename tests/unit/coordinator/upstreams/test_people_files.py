"""Router files as people have them: each is read as it is, or refused by the name of what is not known here.

`READ` has for each file what it means: every deployment as `group provider model base key`, with what else it says behind it.
"""

from __future__ import annotations

import dataclasses

import pytest

from coordinator.upstreams.documents import read_document
from coordinator.upstreams.settings import DeploymentSettings, RouterSettings, read_settings
from deploy.config.serve_config import read_file
from protocol.errors import ConfigError

VARIABLES = {
    "OPENAI_API_KEY": "sk-o",
    "ANTHROPIC_API_KEY": "sk-a",
    "VLLM_BASE": "http://10.0.0.1:8000/v1",
    "VLLM_KEY": "sk-v",
    "RPM": "60",
    "EMPTY": "",
}
OPENAI, ANTHROPIC = "https://api.openai.com/v1", "https://api.anthropic.com"
USUAL = DeploymentSettings(deployment_id="", group="", provider="openai", model="")  # type: ignore[arg-type]
SHOWN = ("weight", "order", "rpm", "tpm", "max_parallel_requests", "drops_params")


def deployment(one: DeploymentSettings) -> str:
    """In one line."""
    more = [
        f"{name}={getattr(one, name)}"
        for name in SHOWN
        if getattr(one, name) != getattr(USUAL, name)
    ]
    if (one.timeout_s, one.first_token_s) != (600.0, 600.0):
        more.append(f"{one.timeout_s:g}/{one.first_token_s:g}s")
    more += [f"{name}:{value}" for name, value in one.headers.items()]
    own = [one.group, one.provider, one.model, one.api_base or "-", one.api_key or "-"]
    return " ".join([*own, *more])


def router(settings: RouterSettings) -> dict[str, object]:
    """What it says beyond the usual."""
    told = {it.name: getattr(settings, it.name) for it in dataclasses.fields(settings)}
    usual = RouterSettings(deployments=())
    return {
        name: value
        for name, value in told.items()
        if name != "deployments" and value != getattr(usual, name)
    }


READ = {
    "one model of OpenAI's by its bare name": (
        "model_list: [{model_name: gpt-4o, litellm_params: {model: gpt-4o}}]",
        [f"gpt-4o openai gpt-4o {OPENAI} sk-o"],
        {},
    ),
    "with its provider and its variable": (
        "model_list: [{model_name: fast, litellm_params: {model: openai/gpt-4o-mini, api_key: os.environ/OPENAI_API_KEY}}]",
        [f"fast openai gpt-4o-mini {OPENAI} sk-o"],
        {},
    ),
    "a Claude by its bare name": (
        "model_list: [{model_name: claude, litellm_params: {model: claude-sonnet-4-5-20250929}}]",
        [f"claude anthropic claude-sonnet-4-5-20250929 {ANTHROPIC} sk-a"],
        {},
    ),
    "a Claude behind a gateway, with the whole path": (
        "model_list: [{model_name: c, litellm_params: {model: anthropic/c, api_key: k, api_base: 'https://gw.example/v1/messages'}}]",
        ["c anthropic c https://gw.example k"],
        {},
    ),
    "a reasoning model": (
        "model_list: [{model_name: think, litellm_params: {model: o3-mini, timeout: 300, stream_timeout: 60}}]",
        [f"think openai o3-mini {OPENAI} sk-o 300/60s"],
        {},
    ),
    "a fine-tuned one": (
        "model_list: [{model_name: ours, litellm_params: {model: 'ft:gpt-4o-mini-2024-07-18:acme::abc'}}]",
        [f"ours openai ft:gpt-4o-mini-2024-07-18:acme::abc {OPENAI} sk-o"],
        {},
    ),
    "embeddings by their bare name": (
        "model_list: [{model_name: embed, litellm_params: {model: text-embedding-3-small}, model_info: {mode: embedding}}]",
        [f"embed openai text-embedding-3-small {OPENAI} sk-o"],
        {},
    ),
    "an organization": (
        "model_list: [{model_name: g, litellm_params: {model: gpt-4o, organization: org-1}}]",
        [f"g openai gpt-4o {OPENAI} sk-o OpenAI-Organization:org-1"],
        {},
    ),
    "headers for a gateway": (
        "model_list: [{model_name: g, litellm_params: {model: openai/m, api_base: 'https://gw/v1', api_key: k, extra_headers: {x-team: os.environ/VLLM_KEY}}}]",
        ["g openai m https://gw/v1 k x-team:sk-v"],
        {},
    ),
    "a vLLM": (
        "model_list:\n  - model_name: llama\n    litellm_params:\n      model: hosted_vllm/meta-llama/Llama-3.1-8B-Instruct\n      api_base: os.environ/VLLM_BASE\n      api_key: os.environ/VLLM_KEY\n",
        ["llama hosted_vllm meta-llama/Llama-3.1-8B-Instruct http://10.0.0.1:8000/v1 sk-v"],
        {},
    ),
    "a vLLM without a key": (
        "model_list: [{model_name: llama, litellm_params: {model: hosted_vllm/m, api_base: 'http://v:8000'}}]",
        ["llama hosted_vllm m http://v:8000 -"],
        {},
    ),
    "what speaks as OpenAI's does": (
        "model_list: [{model_name: general, litellm_params: {model: openai/llama3.2, api_base: 'http://192.168.1.50:11434/v1', api_key: not-needed}}]",
        ["general openai llama3.2 http://192.168.1.50:11434/v1 not-needed"],
        {},
    ),
    "base_url for api_base": (
        "model_list: [{model_name: g, litellm_params: {model: openai/m, base_url: 'http://h:1/v1/', api_key: k}}]",
        ["g openai m http://h:1/v1 k"],
        {},
    ),
    "an address of version 6": (
        "model_list: [{model_name: g, litellm_params: {model: openai/m, api_base: 'http://[fd00::1]:8000/v1', api_key: k}}]",
        ["g openai m http://[fd00::1]:8000/v1 k"],
        {},
    ),
    "two of one name share": (
        "model_list:\n- {model_name: g, litellm_params: {model: openai/a, api_base: 'http://a', api_key: k, weight: 9}}\n- {model_name: g, litellm_params: {model: openai/b, api_base: 'http://b', api_key: k, weight: 1}}",
        ["g openai a http://a k weight=9.0", "g openai b http://b k weight=1.0"],
        {},
    ),
    "limits of a minute": (
        "model_list: [{model_name: g, litellm_params: {model: gpt-4o, rpm: 480, tpm: 100000, max_parallel_requests: 10}}]",
        [f"g openai gpt-4o {OPENAI} sk-o rpm=480 tpm=100000 max_parallel_requests=10"],
        {},
    ),
    "limits from variables and in quotes": (
        "model_list: [{model_name: g, litellm_params: {model: gpt-4o, rpm: os.environ/RPM, tpm: '1000'}}]",
        [f"g openai gpt-4o {OPENAI} sk-o rpm=60 tpm=1000"],
        {},
    ),
    "an order": (
        "model_list:\n- {model_name: g, litellm_params: {model: baton/tiny, order: 1}}\n- {model_name: g, litellm_params: {model: gpt-4o, order: 2}}",
        ["g baton tiny - -", f"g openai gpt-4o {OPENAI} sk-o order=2"],
        {},
    ),
    "fallbacks in router_settings": (
        "model_list: [{model_name: a, litellm_params: {model: gpt-4o}}, {model_name: b, litellm_params: {model: claude-x}}]\nrouter_settings:\n  fallbacks: [{a: [b]}]\n",
        [f"a openai gpt-4o {OPENAI} sk-o", f"b anthropic claude-x {ANTHROPIC} sk-a"],
        {"fallbacks": {"a": ("b",)}},
    ),
    "fallbacks in litellm_settings, in several lines": (
        "model_list: [{model_name: a, litellm_params: {model: gpt-4o}}, {model_name: b, litellm_params: {model: gpt-4}}]\nlitellm_settings:\n  fallbacks:\n    - a:\n      - b\n    - b: [a]\n",
        [f"a openai gpt-4o {OPENAI} sk-o", f"b openai gpt-4 {OPENAI} sk-o"],
        {"fallbacks": {"a": ("b",), "b": ("a",)}},
    ),
    "fallbacks in both, the router's count": (
        "model_list: [{model_name: a, litellm_params: {model: gpt-4o}}, {model_name: b, litellm_params: {model: gpt-4}}]\nlitellm_settings: {fallbacks: [{a: [a]}]}\nrouter_settings: {fallbacks: [{a: [b]}]}",
        [f"a openai gpt-4o {OPENAI} sk-o", f"b openai gpt-4 {OPENAI} sk-o"],
        {"fallbacks": {"a": ("b",)}},
    ),
    "fallbacks for everybody": (
        "model_list: [{model_name: a, litellm_params: {model: gpt-4o}}]\nlitellm_settings: {default_fallbacks: [a]}",
        [f"a openai gpt-4o {OPENAI} sk-o"],
        {"fallbacks": {"*": ("a",)}},
    ),
    "a star for everybody": (
        "model_list: [{model_name: a, litellm_params: {model: gpt-4o}}]\nrouter_settings: {fallbacks: [{'*': [a]}]}",
        [f"a openai gpt-4o {OPENAI} sk-o"],
        {"fallbacks": {"*": ("a",)}},
    ),
    "a longer context": (
        "model_list: [{model_name: s, litellm_params: {model: gpt-4}}, {model_name: l, litellm_params: {model: gpt-4-32k}}]\nlitellm_settings: {context_window_fallbacks: [{s: [l]}]}",
        [f"s openai gpt-4 {OPENAI} sk-o", f"l openai gpt-4-32k {OPENAI} sk-o"],
        {"context_fallbacks": {"s": ("l",)}},
    ),
    "retries, timeouts and cooldowns of LiteLLM's": (
        "model_list: [{model_name: a, litellm_params: {model: gpt-4o}}]\nlitellm_settings: {num_retries: 3, request_timeout: 10, allowed_fails: 3, cooldown_time: 30}",
        [f"a openai gpt-4o {OPENAI} sk-o 10/10s"],
        {"num_retries": 3, "cooldown_s": 30.0},
    ),
    "retries, timeouts and cooldowns of the router's": (
        "model_list: [{model_name: a, litellm_params: {model: gpt-4o, timeout: 5}}]\nrouter_settings: {routing_strategy: least-busy, num_retries: 0, timeout: 30, stream_timeout: 3, allowed_fails: 0, retry_after: 2, max_fallbacks: 1}",
        [f"a openai gpt-4o {OPENAI} sk-o 5/3s"],
        {
            "strategy": "least-busy",
            "num_retries": 0,
            "allowed_fails": 0,
            "retry_after_s": 2.0,
            "max_fallbacks": 1,
        },
    ),
    "no cooldowns": (
        "model_list: [{model_name: a, litellm_params: {model: gpt-4o}}]\nrouter_settings: {disable_cooldowns: true, enable_pre_call_checks: false}",
        [f"a openai gpt-4o {OPENAI} sk-o"],
        {"cooldown_s": 0.0},
    ),
    "dropped fields, for all and for one": (
        "model_list: [{model_name: a, litellm_params: {model: gpt-4o}}]\nlitellm_settings: {drop_params: true}",
        [f"a openai gpt-4o {OPENAI} sk-o drops_params=True"],
        {},
    ),
    "other names": (
        "model_list: [{model_name: a, litellm_params: {model: gpt-4o}}]\nrouter_settings: {model_group_alias: {gpt-3.5-turbo: a, gpt-4: a}}",
        [f"a openai gpt-4o {OPENAI} sk-o"],
        {"aliases": {"gpt-3.5-turbo": "a", "gpt-4": "a"}},
    ),
    "an id and a description": (
        "model_list: [{model_name: a, litellm_params: {model: gpt-4o}, model_info: {id: east, description: the east, mode: chat}}]",
        [f"a openai gpt-4o {OPENAI} sk-o"],
        {},
    ),
    "defaults by an anchor": (
        "model_list:\n- model_name: a\n  litellm_params: &usual {model: openai/m, api_base: 'http://h/v1', api_key: k, rpm: 5}\n- model_name: b\n  litellm_params: {<<: *usual, rpm: 7}\n",
        ["a openai m http://h/v1 k rpm=5", "b openai m http://h/v1 k rpm=7"],
        {},
    ),
    "sections that are empty, and comments": (
        "# ours\nmodel_list: # all\n  - model_name: a   # one\n    litellm_params: {model: gpt-4o}\n    model_info:\nrouter_settings:\nlitellm_settings:\n",
        [f"a openai gpt-4o {OPENAI} sk-o"],
        {},
    ),
}
A = "model_list: [{model_name: a, litellm_params: {model: gpt-4o%s}}]\n"
REFUSED = {
    "the proxy's own settings": (
        A % "" + "general_settings: {master_key: sk-secret}",
        "general_settings is LiteLLM's own",
    ),
    "variables": (
        A % "" + "environment_variables: {K: sk-secret}",
        "environment_variables is not read",
    ),
    "other files": (A % "" + "include: [other.yaml]", "include is not read"),
    "callbacks": (
        A % "" + "litellm_settings: {success_callback: [langfuse]}",
        "success_callback is not known",
    ),
    "a cache": (
        A % "" + "litellm_settings: {cache: true, cache_params: {password: sk-secret}}",
        "cache is not known",
    ),
    "a Redis": (
        A % "" + "router_settings: {redis_host: h, redis_password: sk-secret}",
        "redis_host is not known",
    ),
    "a strategy by usage": (
        A % "" + "router_settings: {routing_strategy: usage-based-routing-v2}",
        "routing_strategy must be one of",
    ),
    "a strategy by latency": (
        A % "" + "router_settings: {routing_strategy: latency-based-routing}",
        "routing_strategy must be one of",
    ),
    "checks before calls": (
        A % "" + "router_settings: {enable_pre_call_checks: true}",
        "enable_pre_call_checks is not supported",
    ),
    "policies of retries": (
        A % "" + "router_settings: {retry_policy: {TimeoutErrorRetries: 3}}",
        "retry_policy is not known",
    ),
    "fallbacks of policy": (
        A % "" + "litellm_settings: {content_policy_fallbacks: [{a: [a]}]}",
        "content_policy_fallbacks is not known",
    ),
    "a fallback by an id": (
        "model_list: [{model_name: a, litellm_params: {model: gpt-4o}, model_info: {id: mine}}]\nrouter_settings: {fallbacks: [{a: [mine]}]}",
        "fallbacks names 'mine'",
    ),
    "a fallback that is there twice": (
        A % "" + "router_settings: {fallbacks: [{a: [a]}, {a: []}]}",
        "fallbacks.a is there twice",
    ),
    "a section that is there twice": (
        A % "" + "router_settings: {num_retries: 1}\nrouter_settings: {fallbacks: [{a: [a]}]}",
        "line 3: 'router_settings' is there twice",
    ),
    "a key that is there twice": (
        A % ", api_key: sk-secret, api_key: k",
        "'api_key' is there twice",
    ),
    "an alias that is a group": (
        A % "" + "router_settings: {model_group_alias: {a: a}}",
        "model_group_alias has 'a'",
    ),
    "a hidden alias": (
        A % "" + "router_settings: {model_group_alias: {b: {model: a, hidden: true}}}",
        "b must be a text",
    ),
    "Azure": (
        A.replace("gpt-4o", "azure/x") % ", api_key: sk-secret, api_version: '1'",
        "model must begin with one of",
    ),
    "Bedrock": (
        A.replace("gpt-4o", "bedrock/anthropic.claude-v2") % "",
        "model must begin with one of",
    ),
    "Ollama's own dialect": (
        A.replace("gpt-4o", "ollama/llama3") % ", api_base: 'http://h'",
        "model must begin with one of",
    ),
    "a wildcard": (
        "model_list: [{model_name: '*', litellm_params: {model: openai/*}}]",
        "model_name must be one name",
    ),
    "a version of an API": (A % ", api_version: '2024-02-01'", "api_version is not known"),
    "a usual temperature": (A % ", temperature: 0.2", "temperature is not known"),
    "a price": (A % ", input_cost_per_token: 0.001", "input_cost_per_token is not known"),
    "retries of one": (A % ", max_retries: 3", "max_retries is not known"),
    "limits beside the params": (
        "model_list: [{model_name: a, litellm_params: {model: gpt-4o}, rpm: 5}]",
        "rpm is not known",
    ),
    "more of a model": (
        "model_list: [{model_name: a, litellm_params: {model: gpt-4o}, model_info: {base_model: x}}]",
        "base_model is not known",
    ),
    "a variable that is not set": (A % ", api_key: os.environ/NONE", "environment variable NONE"),
    "a number in words": (A % ", rpm: os.environ/OPENAI_API_KEY", "rpm must be a number"),
    "an organization of two lines": (
        A % r', organization: "a\nx: sk-secret"',
        "organization must be printable",
    ),
    "a port in words": (A % ", api_base: 'http://h:https/v1'", "api_base must be a URL"),
    "a port beyond all": (A % ", api_base: 'http://h:99999/v1'", "api_base must be a URL"),
    "half an address of version 6": (A % ", api_base: 'http://[::1/v1'", "api_base must be a URL"),
    "a blank in an address": (A % ", api_base: 'http://h /v1'", "api_base must be a URL"),
    "credentials in an address": (
        A % ", api_base: 'http://u:sk-secret@h/v1'",
        "must hold no credentials",
    ),
    "a text without its end": (A % ", api_key: 'sk-secret", "is no YAML: line"),
    "a text with a colon": (
        "model_list:\n- litellm_params: {api_key: sk-secret: x}\n",
        "is no YAML: line 2",
    ),
    "a tag": ("model_list: !sk-secret x", "is no YAML: line 1"),
    "an alias of nothing": ("model_list: *sk-secret", "is no YAML: line 1"),
    "a wrong indent": ("model_list:\n  - api_key: sk-secret\n x: y\n", "is no YAML: line"),
    "a tab": ("model_list:\n\t- api_key: sk-secret\n", "is no YAML: line 2"),
    "a date that is none": (A % ", api_key: 2024-99-99", "is no YAML"),
}


def read(tmp_path, text, variables=VARIABLES):
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return read_settings(file, variables)


@pytest.mark.parametrize("name", READ)
def test_it_is_read_as_it_is(tmp_path, name):
    text, deployments, more = READ[name]
    settings = read(tmp_path, text)
    assert [deployment(one) for one in settings.deployments] == deployments
    assert router(settings) == more


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name_and_no_secret_is_told(tmp_path, name):
    text, told = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert told in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "config.yaml"))
    chain: list[str] = []
    error: BaseException | None = caught.value
    while error is not None:
        chain.append(f"{error} {error.args!r}")
        error = None if error.__suppress_context__ else error.__cause__ or error.__context__
    assert "sk-secret" not in " ".join(chain)


@pytest.mark.parametrize(
    ("model", "variables", "base"),
    [
        ("gpt-4o", {"OPENAI_BASE_URL": "http://gw/v1"}, "http://gw/v1"),
        ("gpt-4o", {"OPENAI_API_BASE": "http://gw/v1/"}, "http://gw/v1"),
        (
            "openai/x",
            {"OPENAI_BASE_URL": "http://one", "OPENAI_API_BASE": "http://two"},
            "http://one",
        ),
        ("gpt-4o", {"OPENAI_BASE_URL": ""}, OPENAI),
        ("claude-x", {"ANTHROPIC_BASE_URL": "http://gw"}, "http://gw"),
        ("claude-x", {"ANTHROPIC_API_BASE": "http://gw/v1/messages"}, "http://gw"),
        ("hosted_vllm/m", {"HOSTED_VLLM_API_BASE": "http://v:8000"}, "http://v:8000"),
    ],
)
def test_an_address_comes_from_the_variable_that_litellm_reads(tmp_path, model, variables, base):
    """With the key of that variable's server: it must not go to the provider itself."""
    text = f"model_list: [{{model_name: a, litellm_params: {{model: {model}}}}}]"
    (one,) = read(tmp_path, text, VARIABLES | variables).deployments
    assert one.api_base == base


def test_a_bad_address_in_a_variable_is_named(tmp_path):
    text = "model_list: [{model_name: a, litellm_params: {model: gpt-4o}}]"
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL, must be a URL"):
        read(tmp_path, text, VARIABLES | {"OPENAI_BASE_URL": "gateway"})


BROKEN = {
    "api-key: 'sk-secret": "line 1",
    "api-key: sk-secret: x": "line 1, column 19",
    "api-key: !sk-secret x": "line 1, column 10",
    "api-key: [sk-secret\nport: 1": "line 2",
    "port: 1\nport: 2": "line 2: 'port' is there twice",
    "x: " + "[" * 5000: "nested too deeply",
    "port: 2024-99-99": "is not YAML",
    "\x00": "characters that no text has",
}


@pytest.mark.parametrize("text", BROKEN)
def test_the_servers_own_file_tells_no_secret_either(tmp_path, text):
    file = tmp_path / "baton.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_file(file)
    assert BROKEN[text] in str(caught.value)
    assert "secret" not in str(caught.value)


def test_what_is_merged_may_be_overridden_and_nothing_else():
    text = "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: [*a, *b], x: 3}\nd: {<<: *b}\n"
    assert read_document(text) == {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 3}, "d": {"x": 2}}
    with pytest.raises(ValueError, match="line 1: 'x' is there twice"):
        read_document("{x: 1, x: 1}")


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
        "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)),
        "a0: &a [*a]",
        "a0: &a {b: [*a]}",
    ],
)
def test_what_anchors_repeat_is_bounded(text):
    with pytest.raises(ValueError, match=r"^line \d+: what it repeats by its anchors is too much"):
        read_document(text if text.startswith("a0") else "a0: &a0 {x: 1}\n" + text)

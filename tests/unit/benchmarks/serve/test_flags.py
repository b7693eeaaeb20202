"""Flags: vLLM's names, and refusals that name them."""

from __future__ import annotations

import math

import pytest

from benchmarks.serve.arguments import endpoints, parse
from benchmarks.serve.client import parse_url
from benchmarks.serve.overhead import Limits
from benchmarks.serve.pools import PoolWatch, read_view
from benchmarks.serve.request import BenchRequest, BodyMaker
from protocol.errors import ConfigError
from tests.unit.benchmarks.serve.conftest import OVERHEAD, measured

VLLM_LINE = (
    "--backend openai --base-url http://h:1 --endpoint /v1/completions --model smol --tokenizer t "
    "--dataset-name random --random-input-len 9 --random-output-len 8 --random-range-ratio 0.5 "
    "--random-prefix-len 4 --num-prompts 7 --request-rate 2 --burstiness 0.5 --max-concurrency 3 "
    "--ignore-eos --seed 1 --goodput ttft:1 tpot:2 --percentile-metrics ttft,e2el "
    "--metric-percentiles 50,99 --num-warmups 2 --temperature 0 --top-p 0.9 --top-k 5 "
    "--save-result --save-detailed --result-dir d --result-filename f --disable-tqdm --label l "
    "--metadata a=b --header k=v --extra-body {} --request-id-prefix p --served-model-name s"
)


def test_a_command_line_of_vllm_s_client_is_understood() -> None:
    assert parse(VLLM_LINE.split()).traffic.burstiness == 0.5


def test_defaults_are_those_of_vllm_s_client() -> None:
    flags = parse([])
    given = (flags.num_prompts, flags.request_rate, flags.metrics, flags.percentiles)
    assert given == (1000, math.inf, ["ttft", "tpot", "itl"], [99.0])


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        ("--num-prompts 0", "--num-prompts"),
        ("--max-concurrency 0", "--max-concurrency"),
        ("--dataset-name trace", "--dataset-path"),
        ("--goodput speed:3", "--goodput"),
        ("--goodput ttft:fast", "--goodput"),
        ("--find-max-rate", "--find-max-rate"),
        ("--find-max-rate --goodput ttft:1 --max-concurrency 2", "--find-max-rate"),
        ("--percentile-metrics tftt", "--percentile-metrics"),
        ("--random-range-ratio 1.5", "--random-range-ratio"),
        ("--ramp-up-strategy linear", "--ramp-up-start-rps"),
        ("--header broken", "--header"),
        ("--no-such-flag", "--no-such-flag"),
    ],
)
def test_what_cannot_be_is_refused_by_its_flag(line: str, flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        parse(line.split())


def test_random_prompts_ignore_the_end_of_text() -> None:
    assert parse([]).extra == {"ignore_eos": True}


def test_prompts_from_files_do_not() -> None:
    assert parse(["--dataset", "custom", "--dataset-path", "x"]).extra == {}


def test_a_name_before_a_url_names_the_endpoint() -> None:
    flags = parse(["--url", "ours=http://a:1", "--url", "http://b:2/?x=y"])
    assert endpoints(flags) == [("ours", "http://a:1"), ("http://b:2/?x=y", "http://b:2/?x=y")]


def test_two_endpoints_cannot_have_one_name() -> None:
    with pytest.raises(ConfigError, match="--url"):
        endpoints(parse(["--url", "a=http://a:1", "--url", "a=http://b:1"]))


def test_a_path_before_v1_is_kept() -> None:
    origin, prefix = parse_url("http://h:81/proxy/v1/")
    assert (origin.host, origin.port, prefix) == ("h", 81, "/proxy")


@pytest.mark.parametrize("url", ["ftp://h:1", "http://", "http://h:99999"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="--url"):
        parse_url(url)


def test_token_ids_cannot_be_said_in_a_chat() -> None:
    with pytest.raises(ConfigError, match="--prompt-format"):
        BodyMaker("openai-chat", "m", {}).body(BenchRequest([1, 2], 2, 4))


def test_a_conversation_cannot_be_completed() -> None:
    with pytest.raises(ConfigError, match="openai-chat"):
        BodyMaker("openai", "m", {}).body(BenchRequest([{"role": "user"}], 0, 4))


def test_a_client_within_its_limits_is_believed() -> None:
    assert OVERHEAD.verdict(Limits()) == ""


@pytest.mark.parametrize(
    ("limits", "flag"),
    [(Limits(share=0.01), "--max-client-share"), (Limits(lag_ms=0.5), "--max-client-lag")],
)
def test_a_client_beyond_a_limit_names_it(limits: Limits, flag: str) -> None:
    assert flag in OVERHEAD.verdict(limits)


def test_another_server_s_cluster_is_none() -> None:
    assert read_view({"detail": "Not Found"}, 1.0) is None


def test_pools_count_the_tokens_of_their_role() -> None:
    totals = {"prefill_tokens": 5, "decode_tokens": 7}
    view = {"workers": [{"role": "decode", "totals": totals}, {"role": "decode", "totals": totals}]}
    sample = read_view(view, 1.0)
    assert sample is not None
    assert sample.tokens == {"decode": 14}


def test_the_rate_of_a_pool_is_between_samples() -> None:
    assert measured().pools.rates(100.0)["prefill"] == [(2.0, 10.0)]


def test_without_samples_there_are_no_pools() -> None:
    assert PoolWatch().summary(1.0) == {}

"""Flags of `baton bench serve`: those of `vllm bench serve` where the meaning is the same. Owns parsing and refusals."""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.serve.arrivals import check as check_traffic
from benchmarks.serve.measure import METRICS, SLO_METRICS
from benchmarks.serve.overhead import Limits
from deploy.config.parser import Parser, typed
from deploy.config.values import number, positive, seconds, whole
from protocol.errors import ConfigError
from simulation.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Sequence

DATASETS = ("random", "prefix_repetition", "sharegpt", "trace", "timed_trace", "custom")
SAMPLING = (
    *("top_p", "top_k", "min_p", "temperature"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty"),
)
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000


MAX_REQUESTS, MAX_TOKENS = 10_000_000, 1 << 24
COUNT, TOKENS, ANY_TOKENS = (
    typed(whole(1)),
    typed(whole(1, MAX_TOKENS)),
    typed(whole(0, MAX_TOKENS)),
)
POSITIVE = typed(positive)


def positive_or_inf(text: str) -> float:
    """A rate or shape for which no bound is a value: `inf`."""
    return math.inf if text.lower() in ("inf", "infinity") else positive(text)


UNBOUNDED = typed(positive_or_inf)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """All flags, checked; adds `command`, `traffic`, `limits`, `slo_ms`, `extra`, `headers` and `percentiles`."""
    flags = make_parser().parse_args(argv)
    flags.command = spoken(argv)
    flags.traffic = check_traffic(
        Traffic(
            rate=flags.request_rate,
            burstiness=flags.burstiness,
            ramp=flags.ramp_up_strategy,
            ramp_start=_needed(flags, "ramp_up_start_rps"),
            ramp_end=_needed(flags, "ramp_up_end_rps"),
        )
    )
    flags.limits = Limits(flags.max_client_share, flags.max_client_lag)
    flags.slo_ms = parse_slo(flags.goodput or [])
    flags.percentiles = _numbers("--metric-percentiles", flags.metric_percentiles)
    flags.metrics = [name.strip() for name in flags.percentile_metrics.split(",")]
    if unknown := [name for name in flags.metrics if name not in METRICS]:
        raise ConfigError(f"--percentile-metrics: {unknown[0]!r} is none of {', '.join(METRICS)}")
    flags.headers = _pairs("--header", flags.header)
    flags.metadata = _pairs("--metadata", flags.metadata)
    flags.random_range_ratio = range_ratio(flags.random_range_ratio)
    flags.extra = _extra(flags)
    _check(flags)
    return flags


def spoken(argv: Sequence[str]) -> str:
    """The command line as it can be shown and kept: no key, no header's value, no password of a URL."""
    shown: list[str] = []
    option = ""
    for word in argv:
        name, equals, value = word.partition("=")
        inline = bool(equals) and word.startswith("--")
        option = name if word.startswith("--") else option
        if inline or not word.startswith("--"):
            hidden = _hidden(option, value if inline else word)
            word = f"{name}={hidden}" if inline else hidden  # noqa: PLW2901
        shown.append(word)
    return shlex.join(["baton", "bench", "serve", *shown])


def _hidden(option: str, value: str) -> str:
    if option == "--api-key":
        return "***"
    if option == "--header":
        return f"{value.partition('=')[0]}=***"
    return re.sub(r"://[^/@]*@", "://***@", value)


def _needed(flags: argparse.Namespace, name: str) -> float:
    value = getattr(flags, name)
    if value is None and flags.ramp_up_strategy is not None:
        raise ConfigError(f"--{name.replace('_', '-')}: needed with --ramp-up-strategy")
    return float(value or 0.0)


def _check(flags: argparse.Namespace) -> None:
    if flags.dataset_name not in ("random", "prefix_repetition") and flags.dataset_path is None:
        raise ConfigError(f"--dataset-path: needed with --dataset-name {flags.dataset_name}")
    if flags.find_max_rate and not flags.slo_ms:
        raise ConfigError("--find-max-rate: needs an SLO, as in --goodput ttft:500 tpot:50")
    if flags.find_max_rate and (flags.ramp_up_strategy or flags.max_concurrency):
        raise ConfigError("--find-max-rate: sets the rate itself; no ramp and no --max-concurrency")
    if not 0 < flags.slo_attainment <= 1:
        raise ConfigError("--slo-attainment: a share, more than 0 and at most 1")
    if flags.custom_output_len == 0:
        raise ConfigError("--custom-output-len: 1 token or more, or -1 for each line's own")
    if not all(0 <= percentile <= 100 for percentile in flags.percentiles):
        raise ConfigError("--metric-percentiles: each must be 0 to 100, as in 50,90,99")


def _extra(flags: argparse.Namespace) -> dict[str, Any]:
    """Fields added to every request."""
    given = {name: getattr(flags, name) for name in (*SAMPLING, "logprobs")}
    extra = {name: value for name, value in given.items() if value is not None}
    ignore_eos = flags.ignore_eos
    if ignore_eos is None:  # as vllm bench serve: lengths that were asked for are what is measured
        ignore_eos = flags.dataset_name in ("random", "trace", "timed_trace")
    if ignore_eos:
        extra["ignore_eos"] = True
    return {**extra, **flags.extra_body}


def parse_slo(pairs: Sequence[str]) -> dict[str, float]:
    """`["ttft:500", "tpot:50"]` → milliseconds by metric."""
    limits = {}
    for pair in pairs:
        name, _, text = pair.partition(":")
        if name not in SLO_METRICS:
            raise ConfigError(f"--goodput: {name!r} is none of {', '.join(SLO_METRICS)}")
        (limits[name],) = _numbers("--goodput", text)
        if not 0 < limits[name] < math.inf:
            raise ConfigError(f"--goodput: {pair}: give milliseconds, more than 0, as {name}:500")
    return limits


def range_ratio(text: str) -> tuple[float, float]:
    """`0.3`, or `{"input": 0.3, "output": 0.5}`."""
    try:
        given = json.loads(text)
        pair = (given["input"], given["output"]) if isinstance(given, dict) else (given, given)
        ratios = (float(pair[0]), float(pair[1]))
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            '--random-range-ratio: a number, or {"input": 0.3, "output": 0.5}'
        ) from None
    if not all(0 <= ratio < 1 for ratio in ratios):
        raise ConfigError("--random-range-ratio: must be at least 0 and less than 1")
    return ratios


def _numbers(flag: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{flag}: {text!r} is not a number") from None


def _pairs(flag: str, items: Sequence[str] | None) -> dict[str, str]:
    pairs = {}
    for item in items or ():
        name, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"{flag}: {item!r} is not KEY=VALUE")
        pairs[name.strip()] = value.strip()
    return pairs


def endpoints(flags: argparse.Namespace) -> list[tuple[str, str]]:
    """`(name, URL)` of each endpoint, in the order given."""
    urls = flags.url or [flags.base_url or f"http://{flags.host}:{flags.port}"]
    named = []
    for index, url in enumerate(urls):
        head, equals, tail = url.partition("=")
        if equals and "/" not in head:
            named.append((head, tail))
        else:
            named.append((url if len(urls) > 1 else (flags.label or flags.backend), url))
        if named[-1][0] in [name for name, _ in named[:index]]:
            raise ConfigError(
                f"--url: two endpoints are called {named[-1][0]!r}; name one NAME=URL"
            )
    return named


def make_parser() -> Parser:
    """Every flag with its meaning."""
    parser = Parser(
        prog="baton bench serve",
        description="Open-loop load on any OpenAI endpoint. Flags and figures are those of "
        "vllm bench serve; docs/benchmarking.md defines them.",
        allow_abbrev=False,
    )
    _add_endpoint(parser.add_argument_group("endpoint"))
    _add_traffic(parser.add_argument_group("traffic"))
    _add_dataset(parser.add_argument_group("dataset"))
    _add_synthetic(parser.add_argument_group("random, prefix_repetition and trace"))
    _add_sampling(parser.add_argument_group("sampling (sent as given, else the server's own)"))
    _add_results(parser.add_argument_group("results"))
    return parser


def _add_endpoint(group: Any) -> None:
    add = group.add_argument
    add("--url", action="append", metavar="[NAME=]URL", help="server; several are compared")
    add("--base-url", help="the same, for one server")
    add("--host", default=DEFAULT_HOST)
    add("--port", type=typed(whole(1, 65535)), default=DEFAULT_PORT)
    add("--backend", choices=("openai", "openai-chat"), default="openai")
    add("--endpoint", help="path (default: /v1/completions, /v1/chat/completions)")
    add("--model", help="name in requests (default: the first of GET /v1/models)")
    add("--served-model-name", help="name in requests where it differs from --model")
    add("--tokenizer", help="directory with tokenizer.json, or what `baton serve` takes as MODEL")
    add("--api-key", help="default: BATON_API_KEY")
    add("--header", nargs="*", metavar="KEY=VALUE", help="sent with every request")
    add("--insecure", action="store_true", help="do not check TLS certificates")
    add("--request-timeout", type=typed(seconds), default=3600.0, help="seconds for a whole answer")
    add("--request-id-prefix", default=f"bench-{uuid.uuid4().hex[:8]}-")


def _add_traffic(group: Any) -> None:
    add = group.add_argument
    add("--num-prompts", type=typed(whole(1, MAX_REQUESTS)), default=1000)
    add(
        "--num-warmups",
        type=typed(whole(0, MAX_REQUESTS)),
        default=0,
        help="requests before the clock starts",
    )
    add("--request-rate", type=UNBOUNDED, default=math.inf, help="a second; inf: all at once")
    add("--burstiness", type=UNBOUNDED, default=1.0, help="gamma shape; 1 is Poisson, inf is even")
    add("--max-concurrency", type=COUNT, help="most requests at once; the wait is counted apart")
    add("--ramp-up-strategy", choices=("linear", "exponential"))
    add("--ramp-up-start-rps", type=POSITIVE)
    add("--ramp-up-end-rps", type=POSITIVE)
    add(
        "--self-timed", action=argparse.BooleanOptionalAction, default=True, help="trace: its times"
    )
    add("--seed", type=typed(whole(0, 2**31 - 1)), default=0)
    add("--find-max-rate", action="store_true", help="search the highest rate within --goodput")
    add("--slo-attainment", type=POSITIVE, default=0.9, help="share of requests within --goodput")
    add("--search-precision", type=POSITIVE, default=0.05, help="end when rates are this close")
    add("--max-rate", type=POSITIVE, help="--find-max-rate tries no more (default: --num-prompts)")


def _add_dataset(group: Any) -> None:
    add = group.add_argument
    add("--dataset-name", "--dataset", choices=DATASETS, default="random")
    add("--dataset-path", type=Path, help="file of sharegpt, trace or custom")
    add("--input-len", type=TOKENS, help="for any dataset with a length")
    add("--output-len", type=TOKENS, help="for any dataset with a length")
    add("--sharegpt-output-len", type=TOKENS, help="default: as long as the file's answer")
    add(
        "--custom-output-len",
        type=typed(whole(-1, MAX_TOKENS)),
        default=256,
        help="-1: each line's output_tokens",
    )
    add("--no-oversample", action="store_true", help="do not repeat a file that is too short")
    add("--disable-shuffle", action="store_true", help="custom: the file's order")
    add("--prompt-format", choices=("auto", "ids", "text"), default="auto")


def _add_synthetic(group: Any) -> None:
    add = group.add_argument
    add("--random-input-len", type=ANY_TOKENS, default=1024)
    add("--random-output-len", type=TOKENS, default=128)
    add(
        "--random-range-ratio", default="0.0", help="a number, or {'input': …, 'output': …} as JSON"
    )
    add(
        "--random-prefix-len", type=ANY_TOKENS, default=0, help="tokens that all prompts begin with"
    )
    add("--prefix-repetition-prefix-len", type=ANY_TOKENS, default=256)
    add("--prefix-repetition-suffix-len", type=TOKENS, default=256)
    add("--prefix-repetition-num-prefixes", type=COUNT, default=10)
    add("--prefix-repetition-output-len", type=TOKENS, default=128)
    add(
        "--trace-chunk-tokens",
        "--timed-trace-chunk-hash-size",
        type=TOKENS,
        help="a hash id's tokens",
    )
    add("--trace-seconds", "--timed-trace-sec-multiplier", type=POSITIVE, help="a timestamp's unit")
    add("--trace-length-scale", type=POSITIVE, default=1.0, help="times every length")
    add("--trace-output-scale", type=POSITIVE, help="times output lengths (default: length scale)")
    add(
        "--trace-time-scale",
        type=POSITIVE,
        default=1.0,
        help="times every time; 0.1: ten times faster",
    )


def _add_sampling(group: Any) -> None:
    add = group.add_argument
    for name in SAMPLING:
        add(
            f"--{name.replace('_', '-')}", type=int if name == "top_k" else typed(number(-math.inf))
        )
    add("--logprobs", type=typed(whole(0)))
    add("--ignore-eos", action=argparse.BooleanOptionalAction, help="on for random and trace")
    add("--extra-body", type=json_object, default={}, metavar="JSON", help="more request fields")


def json_object(text: str) -> dict[str, Any]:
    """argparse type of --extra-body."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return value


def _add_results(group: Any) -> None:
    add = group.add_argument
    add("--goodput", nargs="+", metavar="METRIC:MS", help="ttft, tpot, e2el; all must hold")
    add("--percentile-metrics", default="ttft,tpot,itl", help="also e2el, client_queue_time")
    add("--metric-percentiles", default="99", help="as 50,90,99")
    add("--output", type=Path, metavar="FILE", help="write all figures as JSON")
    add("--report", type=Path, metavar="FILE", help="write a page with plots")
    add("--save-result", action="store_true", help="as --output, in --result-dir/-filename")
    add("--result-dir", type=Path, default=Path())
    add("--result-filename")
    add("--save-detailed", action="store_true", help="with every request's own figures")
    add("--label", help="name in the result (default: --backend)")
    add("--metadata", nargs="*", metavar="KEY=VALUE", help="kept in the result")
    add("--disable-tqdm", "--no-progress", action="store_true", help="no progress bar")
    add(
        "--max-client-share",
        type=typed(number(0)),
        default=Limits.share,
        help="of a core, else unreliable",
    )
    add(
        "--max-client-lag",
        type=typed(number(0)),
        default=Limits.lag_ms,
        metavar="MS",
        help="p99, same",
    )

"""Flags of simulated clusters, for `baton plan` and `baton bench cluster`. Owns how workload, hardware and targets are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.config.autoscale import targets_of
from deploy.config.parser import typed
from deploy.config.values import number, positive, whole
from protocol.errors import ConfigError
from simulation.calibration import DEFAULT_CALIBRATION, Hardware, load_calibration
from simulation.cluster import MAX_MODEL_LEN
from simulation.workload import Shape, SimRequest, random_workload, trace_workload

if TYPE_CHECKING:
    import argparse

    from coordinator.planning.observations import Targets


MAX_REQUESTS, MAX_DAYS = 1_000_000, 31
COUNT, SEED = typed(whole(1)), typed(whole(0))
REQUESTS, TOKENS = typed(whole(1, MAX_REQUESTS)), typed(whole(1, MAX_MODEL_LEN))
POSITIVE = typed(positive)


def add_workload(parser: argparse.ArgumentParser) -> None:
    """What comes."""
    add = parser.add_argument
    add("--trace", type=Path, metavar="FILE", help="Mooncake's format; default: random requests")
    add("--requests", type=REQUESTS, metavar="N", help="the first N (trace: all; random: 2000)")
    add(
        "--rate",
        type=POSITIVE,
        metavar="R",
        help="requests a second; for a trace, its times are stretched to it",
    )
    add("--input-len", type=TOKENS, default=1024, metavar="N", help="random: mean prompt tokens")
    add("--output-len", type=TOKENS, default=128, metavar="N", help="random: mean output tokens")
    add(
        "--spread",
        type=typed(number(0, 10)),
        default=0.6,
        metavar="X",
        help="random: sigma of the logarithm of both lengths",
    )
    add("--time-scale", type=POSITIVE, default=1.0, metavar="X", help="trace: below 1 is denser")
    add(
        "--length-scale",
        type=POSITIVE,
        default=1.0,
        metavar="X",
        help="trace: of prompts and outputs",
    )
    add(
        "--swing",
        type=typed(number(0, 1)),
        default=0.0,
        metavar="X",
        help="trace: how far its rate goes up and down, 0 to 1",
    )
    add("--waves", type=POSITIVE, default=2.0, metavar="X", help="trace: how often it does")
    add("--seed", type=SEED, default=0, metavar="N")


def add_hardware(parser: argparse.ArgumentParser) -> None:
    """What a worker can do."""
    add = parser.add_argument
    add(
        "--calibration",
        type=Path,
        default=DEFAULT_CALIBRATION,
        metavar="FILE",
        help="JSON of `baton bench engine` (default: SmolLM2-135M on one core)",
    )
    add(
        "--prefill-speed",
        type=POSITIVE,
        default=1.0,
        metavar="X",
        help="times as fast as calibrated",
    )
    add(
        "--decode-speed",
        type=POSITIVE,
        default=1.0,
        metavar="X",
        help="times as fast as calibrated",
    )
    add(
        "--kv-tokens",
        type=typed(whole(16)),
        default=65_536,
        metavar="N",
        help="KV pool of a worker, in tokens",
    )
    add("--max-num-seqs", type=COUNT, default=64, metavar="N")
    add(
        "--start-s",
        type=typed(number(0)),
        default=5.0,
        metavar="SECONDS",
        help="seconds from the order of a worker to its work",
    )
    add("--slo", nargs="+", required=True, metavar="NAME:MS", help="ttft:2000 tpot:100 [goal:0.9]")


def workload(arguments: argparse.Namespace) -> list[SimRequest]:
    """Checked and built; ConfigError for what no simulation would end."""
    requests = _workload(arguments)
    span_days = (requests[-1].at_s - requests[0].at_s) / 86400
    if not span_days <= MAX_DAYS:
        raise ConfigError(
            f"--rate: the requests would come over {span_days:.3g} days, and {MAX_DAYS} can be simulated; "
            "give a higher --rate, a smaller --time-scale or fewer --requests"
        )
    most = max(request.prompt_tokens + request.output_tokens for request in requests)
    if most > MAX_MODEL_LEN:
        smaller = "--input-len, --output-len or --spread"
        raise ConfigError(
            f"{'--trace' if arguments.trace else '--input-len'}: a request has {most} tokens, and a simulated worker "
            f"takes {MAX_MODEL_LEN}; give a smaller {'--length-scale' if arguments.trace else smaller}"
        )
    return requests


def _workload(arguments: argparse.Namespace) -> list[SimRequest]:
    if arguments.trace is None:
        count = arguments.requests or 2000
        lengths = (arguments.input_len, arguments.output_len)
        rate = 1.0 if arguments.rate is None else arguments.rate
        return random_workload(count, rate, lengths, arguments.spread, arguments.seed)
    shape = Shape(
        arguments.time_scale,
        arguments.length_scale,
        arguments.length_scale,
        arguments.swing,
        arguments.waves,
        arguments.requests or MAX_REQUESTS,
    )
    requests = trace_workload(arguments.trace, shape)
    if arguments.rate is None:
        return requests
    factor = len(requests) / arguments.rate / max(requests[-1].at_s, 1e-9)
    return [replace(request, at_s=request.at_s * factor) for request in requests]


def hardware(arguments: argparse.Namespace) -> Hardware:
    """The calibration, scaled."""
    found = load_calibration(arguments.calibration)
    return replace(
        found.scaled(arguments.prefill_speed, arguments.decode_speed),
        kv_tokens=arguments.kv_tokens,
        max_num_seqs=arguments.max_num_seqs,
        start_s=arguments.start_s,
    )


def targets(arguments: argparse.Namespace) -> Targets:
    """Of --slo."""
    return targets_of(arguments.slo)

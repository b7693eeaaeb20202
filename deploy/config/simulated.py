"""Flags of simulated clusters, for `baton plan` and `baton bench cluster`. Owns how workload, hardware and targets are read."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from deploy.config.autoscale import targets_of
from protocol.errors import ConfigError
from simulation.calibration import DEFAULT_CALIBRATION, Hardware, load_calibration
from simulation.workload import Shape, SimRequest, random_workload, trace_workload

if TYPE_CHECKING:
    from coordinator.planning.observations import Targets


class Parser(argparse.ArgumentParser):
    """Errors are ConfigErrors, as everywhere in `baton`."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting."""
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def add_workload(parser: argparse.ArgumentParser) -> None:
    """What comes."""
    add = parser.add_argument
    add("--trace", type=Path, metavar="FILE", help="Mooncake's format; default: random requests")
    add("--requests", type=int, metavar="N", help="the first N (trace: all; random: 2000)")
    add("--rate", type=float, help="requests a second; for a trace, its times are stretched to it")
    add("--input-len", type=int, default=1024, help="random: mean prompt tokens")
    add("--output-len", type=int, default=128, help="random: mean output tokens")
    add("--spread", type=float, default=0.6, help="random: sigma of the logarithm of both lengths")
    add("--time-scale", type=float, default=1.0, help="trace: below 1 is denser")
    add("--length-scale", type=float, default=1.0, help="trace: of prompts and outputs")
    add("--swing", type=float, default=0.0, help="trace: how far its rate goes up and down, 0 to 1")
    add("--waves", type=float, default=2.0, help="trace: how often it does")
    add("--seed", type=int, default=0)


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
    add("--prefill-speed", type=float, default=1.0, help="times as fast as calibrated")
    add("--decode-speed", type=float, default=1.0, help="times as fast as calibrated")
    add("--kv-tokens", type=int, default=65_536, help="KV pool of a worker, in tokens")
    add("--max-num-seqs", type=int, default=64)
    add("--start-s", type=float, default=5.0, help="seconds from the order of a worker to its work")
    add("--slo", nargs="+", required=True, metavar="NAME:MS", help="ttft:2000 tpot:100 [goal:0.9]")


def workload(arguments: argparse.Namespace) -> list[SimRequest]:
    """Checked and built."""
    for name in ("time_scale", "length_scale"):
        if getattr(arguments, name) <= 0:
            raise ConfigError(f"--{name.replace('_', '-')}: must be more than 0")
    if arguments.requests is not None and arguments.requests < 1:
        raise ConfigError("--requests: must be at least 1")
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
        arguments.requests or 1 << 30,
    )
    requests = trace_workload(arguments.trace, shape)
    if arguments.rate is None:
        return requests
    if arguments.rate <= 0:
        raise ConfigError("--rate: must be more than 0")
    factor = len(requests) / arguments.rate / max(requests[-1].at_s, 1e-9)
    return [replace(request, at_s=request.at_s * factor) for request in requests]


def hardware(arguments: argparse.Namespace) -> Hardware:
    """The calibration, scaled."""
    for name in ("prefill_speed", "decode_speed"):
        if not 0 < getattr(arguments, name) < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')}: must be more than 0")
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

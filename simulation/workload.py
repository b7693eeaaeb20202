"""The requests of a simulation. Owns their times, lengths and shared prefixes; token ids are made when one arrives.

A prompt is a list of chunks, each with an id; equal ids are equal tokens, and the rest is the request's own. All
tokens of a chunk are the same number: prefixes are compared by chained hashes, so that is enough to tell them apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from protocol.errors import ConfigError
from simulation.traces import read_trace
from simulation.traffic import Traffic, schedule

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TRACE_CHUNK_TOKENS = 512
OWN_IDS = 1 << 40
"""Above every id of a trace: the tokens that a request shares with no other."""


@dataclass(frozen=True, slots=True)
class SimRequest:
    """`chunks` are ids of `chunk_tokens` tokens each."""

    number: int
    at_s: float
    prompt_tokens: int
    output_tokens: int
    chunks: tuple[int, ...] = ()
    chunk_tokens: int = TRACE_CHUNK_TOKENS

    def token_ids(self) -> list[int]:
        """The prompt."""
        ids: list[int] = []
        for chunk in self.chunks:
            ids += [chunk] * self.chunk_tokens
        del ids[self.prompt_tokens :]
        return ids + [OWN_IDS + self.number] * (self.prompt_tokens - len(ids))


@dataclass(frozen=True)
class Shape:
    """How a trace is changed. `time` below 1 makes it denser; `swing` bends its time so that the rate goes up and
    down by that share, `waves` times; every request stays."""

    time: float = 1.0
    length: float = 1.0
    output: float = 1.0
    swing: float = 0.0
    waves: float = 2.0
    first: int = 1 << 30


def trace_workload(path: Path, shape: Shape) -> list[SimRequest]:
    """A trace in Mooncake's format: milliseconds, and one hash id for each 512 prompt tokens."""
    if not 0 <= shape.swing < 1:
        raise ConfigError("--swing: must be at least 0 and less than 1")
    lines = read_trace(path, shape.first, "--trace")
    start, span = lines[0].timestamp, max(lines[-1].timestamp - lines[0].timestamp, 1.0)
    chunk = max(1, round(TRACE_CHUNK_TOKENS * shape.length))
    bend = _bend(shape)
    return [
        SimRequest(
            number,
            bend((line.timestamp - start) / span) * span * 1e-3 * shape.time,
            max(1, round(line.input_length * shape.length)),
            max(1, round(line.output_length * shape.output)),
            tuple(line.hash_ids),
            chunk,
        )
        for number, line in enumerate(lines)
    ]


def _bend(shape: Shape) -> Callable[[float], float]:
    """Share of the requests → share of the time, so that the rate is 1 + swing · sin in the mean.

    The inverse of u - swing · (cos(2πwu) - 1) / (2πw), tabulated."""
    if shape.swing == 0:
        return lambda share: share
    times = np.linspace(0.0, 1.0, 20_001)
    turn = 2 * math.pi * shape.waves
    passed = times - shape.swing * (np.cos(turn * times - math.pi / 2) - 0.0) / turn
    passed -= passed[0]
    passed /= passed[-1]
    return lambda share: float(np.interp(share, passed, times))


def random_workload(
    count: int, rate: float, lengths: tuple[int, int], spread: float, seed: int
) -> list[SimRequest]:
    """Poisson arrivals; lognormal prompt and output lengths of these means, `spread` being the logarithm's sigma."""
    if rate <= 0:
        raise ConfigError("--rate: must be more than 0")
    draw = np.random.default_rng(seed)
    at_s = schedule(Traffic(rate=rate), count, seed)
    prompts, outputs = (
        draw.lognormal(math.log(mean) - spread**2 / 2, spread, count).clip(1, 1 << 40).astype(int)
        for mean in lengths
    )
    return [
        SimRequest(number, at_s[number], int(prompts[number]), int(outputs[number]))
        for number in range(count)
    ]

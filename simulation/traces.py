"""Traces in Mooncake's format: one line of JSON for each request. Owns reading them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


class TraceLine(msgspec.Struct):
    """Mooncake's trace format: one id in `hash_ids` for each chunk of prompt tokens; equal ids are equal tokens."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int] = []


def read_trace(path: Path, total: int, flag: str) -> list[TraceLine]:
    """The first `total` lines; ConfigError names `flag` and a line that is not the format."""
    lines: list[TraceLine] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if len(lines) == total:
                    break
                if line.strip():
                    lines.append(_trace_line(line, f"{flag}: {path} line {number}"))
    except OSError as error:
        raise ConfigError(f"{flag}: cannot read {path}: {error}") from None
    if not lines:
        raise ConfigError(f"{flag}: {path} has no requests")
    return lines


def _trace_line(line: bytes, where: str) -> TraceLine:
    try:
        return msgspec.json.decode(line, type=TraceLine)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{where} is no line of a trace: {error}") from None

"""Traces in Mooncake's format: one line of JSON for each request. Owns reading them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


MAX_TOKENS = 1 << 24
FORMAT = (
    'write one JSON object a line, as {"timestamp": 250, "input_length": 6955, "output_length": 52}'
)
Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class TraceLine(msgspec.Struct):
    """Mooncake's trace format: one id in `hash_ids` for each chunk of prompt tokens; equal ids are equal tokens."""

    timestamp: float
    input_length: Tokens
    output_length: Tokens
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
                    _check_order(lines, f"{flag}: {path} line {number}")
    except OSError as error:
        raise ConfigError(f"{flag}: cannot read {path}: {error.strerror}") from None
    if not lines:
        raise ConfigError(f"{flag}: {path} has no requests; {FORMAT}")
    return lines


def _check_order(lines: list[TraceLine], where: str) -> None:
    if len(lines) > 1 and lines[-1].timestamp < lines[-2].timestamp:
        raise ConfigError(f"{where} is earlier than the one before; sort the lines by timestamp")


def _trace_line(line: bytes, where: str) -> TraceLine:
    try:
        return msgspec.json.decode(line, type=TraceLine)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{where} is no line of a trace ({error}); {FORMAT}") from None

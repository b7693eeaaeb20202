"""Embeddings in nobody's dialect. Owns what a request for them may ask, and how states become vectors of unit length.

texts, token ids ─► EmbeddingEdge: limits ─► AnswerRequest without an answer ─► Delta.embedding ─► vectors_of ─► API
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from coordinator.edge.answers.answer import AnswerRequest, RawPrompts, SamplingWishes
from coordinator.edge.answers.own_deployment import asked_of, check_embeds
from coordinator.edge.http.field_errors import LONG_ARRAY
from coordinator.edge.http.limits import MAX_EMBEDDED, MAX_EMBEDDED_BYTES
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.edge.answers.answer import Delta, Ending, Usage
    from coordinator.edge.answers.edge import Edge
    from coordinator.edge.http.error_replies import Failure

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client asks to be embedded: `raw`, which `field` held."""

    raw: RawPrompts
    field: str
    model: str
    reply_id: str
    arrival_s: float
    priority: int = 0
    keep_alive_s: float | None = None


class EmbeddingEdge:
    """What the APIs need of an edge for embeddings."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def check(self, name: str, raw: RawPrompts, field: str) -> None:
        """Raise InvalidRequest where the model is not for embeddings, and for more of them than one answer may have."""
        most, count = MAX_EMBEDDED, len(raw.said)
        if not self._is_for_group(name):
            model = self._edge.of(name).model
            size = model.config.hidden_size
            check_embeds(model, raw)
            most = min(most, MAX_EMBEDDED_BYTES // (FLOAT_BYTES * size))
        if count > most:
            told = f"{field} must have at most {most} prompts, but has {count}"
            raise InvalidRequest(told, field, LONG_ARRAY)

    def _is_for_group(self, name: str) -> bool:
        """A name that is a model's too means the model, if it is for embeddings: vectors of two models do not compare."""
        edge = self._edge
        if edge.group_of(name) is None:
            return False
        return name not in edge.own_names or edge.of(name).model.pooling is None

    async def asked(self, wanted: Wanted) -> AnswerRequest:
        """Nothing is chosen: prompts are computed, and their states pooled. For a group each deployment makes its own."""
        asked = AnswerRequest(
            arrival_s=wanted.arrival_s,
            operation="embeddings",
            reply_id=wanted.reply_id,
            model=wanted.model,
            prompts=[],
            prompt_field=wanted.field,
            wishes=SamplingWishes(max_tokens=0, temperature=0.0),
            default_max_tokens=0,
            priority=wanted.priority,
            wants_timings=True,
            raw=wanted.raw,
            keep_alive_s=wanted.keep_alive_s,
        )
        if self._is_for_group(wanted.model):
            return asked
        return await asked_of(self._edge.of(wanted.model), asked, spells=True)


def vectors_of(choices: Sequence[Delta], dimensions: int | None = None) -> list[array[float]]:
    """The first `dimensions` numbers of each, made one long."""
    return [_unit(numbers_of(delta)[:dimensions]) for delta in choices]


def numbers_of(delta: Delta) -> array[float]:
    """An embedding as it was computed."""
    numbers = array("f")
    numbers.frombytes(delta.embedding)
    return numbers


def spelled(numbers: array[float]) -> orjson.Fragment:
    """A list of JSON's, each by a call of its own: one call for all of an answer would keep the interpreter for a tenth of a second."""
    return orjson.Fragment(orjson.dumps(numbers.tolist()))


def _unit(numbers: array[float]) -> array[float]:
    """A vector of nothing but zeros has no direction, and stays."""
    length = math.sqrt(math.fsum(number * number for number in numbers))
    return array("f", (number / length for number in numbers)) if length else numbers


class WholeDialect:
    """Base of what is never streamed."""

    stream_media_type = whole_media_type = "application/json"
    stream_headers: Mapping[str, str] = {}

    def begin(self, usage: Usage) -> bytes:
        """See Dialect."""
        raise NotImplementedError

    def delta(self, delta: Delta, usage: Usage) -> bytes:
        """See Dialect."""
        raise NotImplementedError

    def end(self, delta: Delta, ending: Ending) -> bytes:
        """See Dialect."""
        raise NotImplementedError

    def failure(self, failure: Failure) -> bytes:
        """See Dialect."""
        raise NotImplementedError

    def whole(self, choices: Sequence[Delta], ending: Ending) -> bytes:
        """See Dialect."""
        raise NotImplementedError

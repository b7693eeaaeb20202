"""Neutral answers to Ollama's lines. Owns what a line holds: a stream is one object a line, the last with `done` and the counts.

A call of a tool is told whole, when its arguments are complete.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from coordinator.edge.answers.answer import ToolCallDelta
from coordinator.edge.answers.tools import arguments_json
from protocol.clock import wall_time_s
from protocol.finish import FinishReason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.edge.answers.answer import Delta, Ending, Usage
    from coordinator.edge.http.error_replies import Failure
    from coordinator.edge.text.tokenizer import TextTokenizer
    from protocol.sampling import TokenLogprob

    Fields = dict[str, Any]

NANOSECONDS = 1_000_000
LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say."""
DONE_REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.TOOL_CALLS: "stop",
}


def now_told() -> str:
    """The time as Ollama writes it."""
    return datetime.fromtimestamp(wall_time_s(), UTC).isoformat().replace("+00:00", "Z")


def error_body(failure: Failure) -> bytes:
    """`{"error": "…"}`."""
    return orjson.dumps({"error": failure.message})


class OllamaDialect:
    """What both endpoints have in common; each says where the words go."""

    stream_media_type = "application/x-ndjson"
    stream_headers: Mapping[str, str] = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    whole_media_type = "application/json"

    def __init__(self, model: str, tokenizer: TextTokenizer, *, logprobs: bool = False) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._calls: dict[int, ToolCallDelta] = {}

    def begin(self, usage: Usage) -> bytes:  # noqa: ARG002 - the counts come at the end
        """Nothing comes before the first line."""
        return b""

    def delta(self, delta: Delta, usage: Usage) -> bytes:  # noqa: ARG002 - the counts come at the end
        """A line, if there is anything to say."""
        calls = self._completed(delta.calls)
        if not (delta.text or delta.reasoning or calls):
            return b""
        return _line(self._said(delta, calls) | {"done": False})

    def end(self, delta: Delta, ending: Ending) -> bytes:
        """The last words, the calls that are complete now, and the counts."""
        calls = [*self._completed(delta.calls), *self._rest()]
        said = b""
        if delta.text or delta.reasoning or calls:
            said = _line(self._said(delta, calls) | {"done": False})
        empty = self.words("", "", [])
        return said + _line(self._head() | empty | self._counts(delta, ending))

    def failure(self, failure: Failure) -> bytes:
        """A line in the place of the last."""
        return error_body(failure) + b"\n"

    def whole(self, choices: Sequence[Delta], ending: Ending) -> bytes:
        """The answer."""
        (delta,) = choices
        return orjson.dumps(self._said(delta, delta.calls) | self._counts(delta, ending))

    def words(self, text: str, thought: str, calls: Sequence[ToolCallDelta]) -> Fields:
        """Where a line has them."""
        raise NotImplementedError

    def _head(self) -> Fields:
        return {"model": self._model, "created_at": now_told()}

    def _said(self, delta: Delta, calls: Sequence[ToolCallDelta]) -> Fields:
        told = self._head() | self.words(delta.text, delta.reasoning, calls)
        return told | ({"logprobs": self._told_logprobs(delta)} if self._logprobs else {})

    def _counts(self, delta: Delta, ending: Ending) -> Fields:
        """Nanoseconds: the prompt's time ends with the first token."""
        timings, usage = ending.timings, ending.usage
        total_ms, first_ms = (timings.e2e_ms, timings.ttft_ms) if timings else (0.0, 0.0)
        return {
            "done": True,
            "done_reason": DONE_REASONS[delta.finish_reason or FinishReason.STOP],
            "total_duration": int(total_ms * NANOSECONDS),
            "load_duration": 0,
            "prompt_eval_count": usage.num_prompt_tokens,
            "prompt_eval_duration": int(first_ms * NANOSECONDS),
            "eval_count": usage.num_output_tokens,
            "eval_duration": int((total_ms - first_ms) * NANOSECONDS),
        }

    def _completed(self, parts: Sequence[ToolCallDelta]) -> list[ToolCallDelta]:
        """Calls that are complete because another has begun."""
        done: list[ToolCallDelta] = []
        for part in parts:
            known = self._calls.get(part.position)
            if known is None:
                done += self._rest()
                self._calls[part.position] = part
            else:
                said = known.arguments + part.arguments
                self._calls[part.position] = ToolCallDelta(
                    known.position, known.call_id, known.name, said
                )
        return done

    def _rest(self) -> list[ToolCallDelta]:
        calls, self._calls = list(self._calls.values()), {}
        return calls

    def _told_logprobs(self, delta: Delta) -> list[orjson.Fragment]:
        """Each encoded by itself: one call for a long answer would keep everybody waiting."""
        return [
            orjson.Fragment(orjson.dumps(self._all_logprobs(token.token_id, token.logprob)))
            for token in delta.tokens
            if token.logprob is not None
        ]

    def _all_logprobs(self, token_id: int, told: TokenLogprob) -> Fields:
        others = [self._logprob(*other) for other in told.top]
        return self._logprob(token_id, told.logprob) | {"top_logprobs": others}

    def _logprob(self, token_id: int, logprob: float) -> Fields:
        text = self._tokenizer.token_text(token_id)
        exact = list(self._tokenizer.token_bytes(token_id))
        return {"token": text, "logprob": max(logprob, LOWEST_LOGPROB), "bytes": exact}


class ChatDialect(OllamaDialect):
    """POST /api/chat: words in a message."""

    def words(self, text: str, thought: str, calls: Sequence[ToolCallDelta]) -> Fields:
        """A message of the assistant."""
        message: Fields = {"role": "assistant", "content": text}
        if thought:
            message["thinking"] = thought
        if calls:
            message["tool_calls"] = [_call(call) for call in calls]
        return {"message": message}


class GenerateDialect(OllamaDialect):
    """POST /api/generate: words as they are."""

    def words(self, text: str, thought: str, calls: Sequence[ToolCallDelta]) -> Fields:  # noqa: ARG002 - there are none
        """A response."""
        return {"response": text} | ({"thinking": thought} if thought else {})


def _call(call: ToolCallDelta) -> Fields:
    function = {"name": call.name, "arguments": orjson.Fragment(arguments_json(call.arguments))}
    return {"id": call.call_id, "function": {"index": call.position} | function}


def _line(fields: Fields) -> bytes:
    return orjson.dumps(fields) + b"\n"

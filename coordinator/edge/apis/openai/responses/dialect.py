"""Neutral answers to responses and their events. Owns what a response object holds and in what order a stream tells it.

    created · in_progress · (output_item.added … output_item.done) … · completed, incomplete or failed

Every event has its number; there is no `[DONE]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec import Raw

from coordinator.edge.answers.answer import TextDelta
from coordinator.edge.apis.openai.dialects.generation import STREAM_HEADERS
from coordinator.edge.apis.openai.dialects.replies import chat_logprobs, encode
from coordinator.edge.apis.openai.responses.items import DONE, GROWING, UNFINISHED, Output
from protocol.clock import wall_time_s
from protocol.finish import FinishReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from coordinator.edge.answers.answer import Delta, Ending, Usage
    from coordinator.edge.http.error_replies import Failure
    from coordinator.edge.text.tokenizer import TextTokenizer

    Fields = dict[str, Any]

FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ResponseOptions:
    """What a response says besides its output; `echoed` are the request's own fields."""

    response_id: str
    created: int
    model: str
    echoed: Mapping[str, Any]
    logprobs: bool = False


class ResponsesDialect:
    """POST /v1/responses. `keep` is told a response that has ended: its JSON and its output."""

    stream_media_type = "text/event-stream"
    stream_headers: Mapping[str, str] = STREAM_HEADERS
    whole_media_type = "application/json"

    def __init__(
        self,
        options: ResponseOptions,
        tokenizer: TextTokenizer,
        keep: Callable[[bytes, Sequence[Fields]], None],
    ) -> None:
        self._options = options
        self._tokenizer = tokenizer
        self._keep = keep
        self._output = Output()
        self._num_events = 0

    def begin(self, usage: Usage) -> bytes:  # noqa: ARG002 - the counts come at the end
        """The response without what it says."""
        told = self._response(GROWING)
        return self._tell(
            {"type": f"response.{name}", "response": told} for name in ("created", GROWING)
        )

    def delta(self, delta: Delta, usage: Usage) -> bytes:  # noqa: ARG002 - the counts come at the end
        """More of the open item, or of another."""
        return self._tell(self._events(delta))

    def end(self, delta: Delta, ending: Ending) -> bytes:
        """The last piece, and the whole response."""
        status = _status(delta)
        said = self._tell(self._events(delta)) + self._tell(self._output.close(status))
        told = self._ended(status, ending.usage)
        return said + self._tell([{"type": f"response.{status}", "response": told}])

    def failure(self, failure: Failure) -> bytes:
        """An error event, and the response as far as it came."""
        told = {"code": failure.code, "message": failure.message, "param": failure.param}
        said = self._tell(self._output.close(UNFINISHED)) + self._tell([{"type": "error", **told}])
        error = {"code": "server_error", "message": failure.message}
        response = self._response(FAILED) | {"error": error}
        return said + self._tell([{"type": f"response.{FAILED}", "response": response}])

    def whole(self, choices: Sequence[Delta], ending: Ending) -> bytes:
        """The response."""
        (delta,) = choices
        status = _status(delta)
        for _ in (*self._events(delta), *self._output.close(status)):
            pass
        return encode(self._ended(status, ending.usage))

    def _events(self, delta: Delta) -> Iterable[Fields]:
        """Log-probabilities come with text: with the first piece of it."""
        logprobs = self._logprobs(delta)
        for part in delta.pieces():
            is_text = isinstance(part, TextDelta)
            yield from self._output.push(part, logprobs if is_text else ())
            if is_text:
                logprobs = []

    def _logprobs(self, delta: Delta) -> list[Raw]:
        """Encoded: a stream tells them five times."""
        if not self._options.logprobs:
            return []
        content = chat_logprobs(delta.tokens, self._tokenizer).content
        return [it if isinstance(it, Raw) else Raw(encode(it)) for it in content]

    def _ended(self, status: str, usage: Usage) -> Fields:
        told = self._response(status) | {"usage": usage_of(usage), "completed_at": None}
        if status == DONE:
            told["completed_at"] = int(wall_time_s())
        else:
            told["incomplete_details"] = {"reason": "max_output_tokens"}
        self._keep(encode(told), self._output.told)
        return told

    def _response(self, status: str) -> Fields:
        options = self._options
        return {
            "id": options.response_id,
            "object": "response",
            "created_at": options.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": options.model,
            "output": self._output.told,
            "usage": None,
            **options.echoed,
        }

    def _tell(self, events: Iterable[Fields]) -> bytes:
        return b"".join(self._numbered(event) for event in events)

    def _numbered(self, event: Fields) -> bytes:
        number, self._num_events = self._num_events, self._num_events + 1
        name: str = event["type"]
        told = encode(event | {"sequence_number": number})
        return b"event: " + name.encode() + b"\ndata: " + told + b"\n\n"


def _status(delta: Delta) -> str:
    return UNFINISHED if delta.finish_reason is FinishReason.LENGTH else DONE


def usage_of(usage: Usage) -> Fields:
    """Counts as this API names them."""
    prompt, output = usage.num_prompt_tokens, usage.num_output_tokens
    cached = {"cached_tokens": usage.num_cached_tokens, "cache_write_tokens": 0}
    return {
        "input_tokens": prompt,
        "input_tokens_details": cached,
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": usage.num_reasoning_tokens},
        "total_tokens": prompt + output,
    }

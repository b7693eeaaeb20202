"""Other servers' streams to neutral deltas. Owns what of their events is believed; a stream that does not come to its end is
broken, whatever it said before.

    bytes ─► Events: data of each event ─► OpenAiListener | CompletionListener | AnthropicListener ─► deltas, counted, is_over
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from coordinator.edge.answers.answer import Delta, ReasoningDelta, TextDelta, ToolCallDelta
from protocol.finish import FinishReason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.edge.answers.answer import Part

MAX_EVENT_BYTES = 1 << 20
DONE = b"[DONE]"
OPENAI_ENDS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
}
ANTHROPIC_ENDS = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
}


class BrokenStream(Exception):
    """What it says cannot be an answer. What `may_tell` is in the server's own words, of any length, a key among them perhaps."""

    def __init__(self, told: str, *, may_tell: bool = False) -> None:
        super().__init__(told)
        self.may_tell = may_tell


@dataclass(slots=True)
class Counted:
    """Tokens as the other server counts them; None where it did not."""

    prompt: int | None = None
    output: int | None = None
    cached: int | None = None
    reasoning: int | None = None


class Events:
    """The data of server-sent events, in whatever pieces the bytes come."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Raises BrokenStream for one that is larger than any should be."""
        self._buffer += piece
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end]).rstrip(b"\r")
            del self._buffer[: end + 1]
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
                self._grow(len(line))
            elif not line and self._data:
                data, self._data, self._size = b"\n".join(self._data), [], 0
                yield data
        self._grow(0)

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size + len(self._buffer) > MAX_EVENT_BYTES:
            raise BrokenStream(f"an event is larger than {MAX_EVENT_BYTES} bytes")


@dataclass(slots=True)
class Listener:
    """What of one stream was heard so far. `ended` are choices that told why they ended."""

    num_choices: int = 1
    counted: Counted = field(default_factory=Counted)
    is_over: bool = False
    ended: set[int] = field(default_factory=set)

    def hear(self, data: bytes) -> list[Delta]:
        """An event's deltas. Raises BrokenStream."""
        if data == DONE:
            self.end()
            return []
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise BrokenStream("an event is no JSON") from error
        if not isinstance(event, dict):
            raise BrokenStream("an event is no JSON object")
        if failure := event.get("error"):
            told = f"an error event: {_message(failure)}"
            raise BrokenStream(told, may_tell=True)
        try:
            return self.take(event)
        except (TypeError, AttributeError, KeyError, ValueError) as wrong:
            raise BrokenStream("an event has not the form of an answer") from wrong

    def take(self, event: dict[str, Any]) -> list[Delta]:
        """One event; TypeError, AttributeError, KeyError or ValueError for one that is none."""
        raise NotImplementedError

    def end(self) -> None:
        """Nothing more comes. Raises BrokenStream where something is missing."""
        if len(self.ended) != self.num_choices:
            raise BrokenStream("it ended before the answer did")
        self.is_over = True


def _message(error: object) -> str:
    told = error.get("message") if isinstance(error, dict) else error
    return str(told)


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _count(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**40:
        raise ValueError(value)
    return value


def _delta(index: int, parts: list[Part]) -> Delta:
    text = "".join(part.text for part in parts if isinstance(part, TextDelta))
    return Delta(index, text, parts=parts)


class OpenAiListener(Listener):
    """Chunks of chat completions."""

    def take(self, event: dict[str, Any]) -> list[Delta]:
        """One chunk."""
        usage = event.get("usage")
        if usage:
            self.counted = Counted(
                _count(usage.get("prompt_tokens")),
                _count(usage.get("completion_tokens")),
                _count((usage.get("prompt_tokens_details") or {}).get("cached_tokens")),
                _count((usage.get("completion_tokens_details") or {}).get("reasoning_tokens")),
            )
        return [self._choice(choice) for choice in event.get("choices") or ()]

    def _choice(self, choice: dict[str, Any]) -> Delta:
        index = _count(choice.get("index", 0))
        if index is None or index >= self.num_choices or index in self.ended:
            raise ValueError(index)
        delta = _delta(index, self.parts_of(choice))
        reason = choice.get("finish_reason")
        if reason is not None:
            if reason not in OPENAI_ENDS:
                raise BrokenStream(f"it ended by '{reason}'", may_tell=True)
            delta.finish_reason = OPENAI_ENDS[reason]
            stop = choice.get("stop_reason")
            delta.stop_reason = stop if isinstance(stop, str) else None
            self.ended.add(index)
        return delta

    def parts_of(self, choice: dict[str, Any]) -> list[Part]:
        """What a chunk's choice says; the errors are those of `take`."""
        says = choice.get("delta") or {}
        parts: list[Part] = []
        if thought := _text(says.get("reasoning_content") or says.get("reasoning")):
            parts.append(ReasoningDelta(thought))
        if text := _text(says.get("content")) + _text(says.get("refusal")):
            parts.append(TextDelta(text))
        parts += [self._call(call) for call in says.get("tool_calls") or ()]
        return parts

    @staticmethod
    def _call(call: dict[str, Any]) -> ToolCallDelta:
        function = call.get("function") or {}
        position = _count(call["index"])
        if position is None:
            raise ValueError(position)
        return ToolCallDelta(
            position,
            _text(call.get("id")),
            _text(function.get("name")),
            _text(function.get("arguments")),
        )


class CompletionListener(OpenAiListener):
    """Chunks of completions."""

    def parts_of(self, choice: dict[str, Any]) -> list[Part]:
        """Text alone."""
        text = _text(choice.get("text"))
        return [TextDelta(text)] if text else []


class AnthropicListener(Listener):
    """Events of a message."""

    def __init__(self, num_choices: int = 1) -> None:
        super().__init__(num_choices)
        self._calls: dict[int, int] = {}
        self._has_input: set[int] = set()
        self._end: Delta | None = None

    def take(self, event: dict[str, Any]) -> list[Delta]:
        """One event; those of an unknown type say nothing, as their API wants it."""
        kind = event["type"]
        if self.ended and kind in ("content_block_start", "content_block_delta"):
            raise ValueError(kind)
        if kind == "message_start":
            self._count(event["message"].get("usage") or {})
        elif kind == "content_block_start":
            return self._begin(event["index"], event["content_block"])
        elif kind == "content_block_delta":
            return self._piece(event["index"], event["delta"])
        elif kind == "content_block_stop":
            return self._close(event["index"])
        elif kind == "message_delta":
            self._count(event.get("usage") or {})
            return self._ending(event["delta"])
        elif kind == "message_stop":
            self.end()
        return []

    def _begin(self, index: int, block: dict[str, Any]) -> list[Delta]:
        if block["type"] == "text":
            return self._said(TextDelta(_text(block.get("text"))))
        if block["type"] == "thinking":
            return self._said(ReasoningDelta(_text(block.get("thinking"))))
        if block["type"] == "tool_use":
            self._calls[index] = position = len(self._calls)
            told = block.get("input")
            arguments = orjson.dumps(told).decode() if told else ""
            if arguments:
                self._has_input.add(index)
            return self._said(
                ToolCallDelta(position, _text(block["id"]), _text(block["name"]), arguments)
            )
        return []

    def _piece(self, index: int, delta: dict[str, Any]) -> list[Delta]:
        kind = delta["type"]
        if kind == "text_delta":
            return self._said(TextDelta(_text(delta["text"])))
        if kind == "thinking_delta":
            return self._said(ReasoningDelta(_text(delta["thinking"])))
        if kind == "input_json_delta":
            told = _text(delta["partial_json"])
            if told:
                self._has_input.add(index)
            return self._said(ToolCallDelta(self._calls[index], arguments=told))
        return []

    def _close(self, index: int) -> list[Delta]:
        """A call without arguments has an empty object for them."""
        if index in self._calls and index not in self._has_input:
            return self._said(ToolCallDelta(self._calls[index], arguments="{}"))
        return []

    @staticmethod
    def _said(part: Part) -> list[Delta]:
        is_empty = not (
            part.name or part.arguments if isinstance(part, ToolCallDelta) else part.text
        )
        return [] if is_empty else [_delta(0, [part])]

    def _count(self, usage: dict[str, Any]) -> None:
        """Their `input_tokens` are those that were not cached."""
        counted = self.counted
        cached = _count(usage.get("cache_read_input_tokens"))
        if (fresh := _count(usage.get("input_tokens"))) is not None:
            written = _count(usage.get("cache_creation_input_tokens")) or 0
            counted.prompt = fresh + written + (cached or 0)
            counted.cached = cached
        if (output := _count(usage.get("output_tokens"))) is not None:
            counted.output = output

    def _ending(self, told: dict[str, Any]) -> list[Delta]:
        reason = told.get("stop_reason")
        if reason is None or self.ended:
            return []
        if reason not in ANTHROPIC_ENDS:
            raise BrokenStream(f"it ended by '{reason}'", may_tell=True)
        sequence = told.get("stop_sequence")
        stop = sequence if isinstance(sequence, str) else None
        self.ended.add(0)
        return [Delta(0, finish_reason=ANTHROPIC_ENDS[reason], stop_reason=stop)]

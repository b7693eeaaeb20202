"""Neutral answers to Anthropic's messages and events. Owns when a block begins and ends.

    message_start · (content_block_start · content_block_delta … content_block_stop) … · message_delta · message_stop

A `ping` follows the first block's start, as their servers send it. An error is an event, and the last one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Raw

from coordinator.edge.answers.answer import ReasoningDelta, TextDelta, ToolCallDelta
from coordinator.edge.answers.tools import arguments_json
from coordinator.edge.apis.anthropic import replies
from protocol.finish import FinishReason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.edge.answers.answer import Delta, Ending, Part, Usage
    from coordinator.edge.http.error_replies import Failure

PING: dict[str, Any] = {"type": "ping"}


def event(fields: Mapping[str, Any]) -> bytes:
    """One event of a stream; its name is its data's type."""
    name: str = fields["type"]
    return b"event: " + name.encode() + b"\ndata: " + replies.encode(fields) + b"\n\n"


class MessagesDialect:
    """POST /v1/messages."""

    stream_media_type = "text/event-stream"
    stream_headers: Mapping[str, str] = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    whole_media_type = "application/json"

    def __init__(self, reply_id: str, model: str) -> None:
        self._reply_id = reply_id
        self._model = model
        self._open: tuple[type[Part], int] | None = None
        self._num_blocks = 0
        self._has_pinged = False

    def begin(self, usage: Usage) -> bytes:
        """The message without what it says."""
        message = self._message([], None, None, replies.usage_of(usage, 0))
        return event({"type": "message_start", "message": message})

    def delta(self, delta: Delta, usage: Usage) -> bytes:  # noqa: ARG002 - the counts come at the end
        """More of the open block, or of another."""
        return b"".join(self._piece(part) for part in delta.pieces())

    def end(self, delta: Delta, ending: Ending) -> bytes:
        """The last piece, why it was the last, and the counts."""
        reason, sequence = stop_of(delta)
        said = self.delta(delta, ending.usage) + self._close() + self._ping()
        told = {"stop_reason": reason, "stop_sequence": sequence}
        usage = replies.usage_of(ending.usage)
        said += event({"type": "message_delta", "delta": told, "usage": usage})
        return said + event({"type": "message_stop"})

    def failure(self, failure: Failure) -> bytes:
        """An error event."""
        return event(replies.error_fields(failure))

    def whole(self, choices: Sequence[Delta], ending: Ending) -> bytes:
        """The message."""
        (delta,) = choices
        content = [_block(part) for part in delta.pieces()]
        usage = replies.usage_of(ending.usage)
        return replies.encode(self._message(content, *stop_of(delta), usage))

    def _message(
        self,
        content: list[dict[str, Any]],
        reason: str | None,
        sequence: str | None,
        usage: replies.UsageReply,
    ) -> replies.MessageReply:
        return replies.MessageReply(
            self._reply_id, "assistant", self._model, content, reason, sequence, usage
        )

    def _piece(self, part: Part) -> bytes:
        kind = type(part), part.position if isinstance(part, ToolCallDelta) else 0
        said = b""
        if kind != self._open:
            said = self._close() + self._begin(kind, part) + self._ping()
        delta = _delta(part)
        if delta is None:
            return said
        index = self._num_blocks - 1
        return said + event({"type": "content_block_delta", "index": index, "delta": delta})

    def _begin(self, kind: tuple[type[Part], int], part: Part) -> bytes:
        self._open, index = kind, self._num_blocks
        self._num_blocks += 1
        block = _empty_block(part)
        return event({"type": "content_block_start", "index": index, "content_block": block})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return event({"type": "content_block_stop", "index": self._num_blocks - 1})

    def _ping(self) -> bytes:
        if self._has_pinged:
            return b""
        self._has_pinged = True
        return event(PING)


def stop_of(delta: Delta) -> tuple[str, str | None]:
    """Why an answer ended, and the stop sequence if one ended it."""
    if delta.finish_reason is FinishReason.LENGTH:
        return "max_tokens", None
    if delta.finish_reason is FinishReason.TOOL_CALLS:
        return "tool_use", None
    if isinstance(delta.stop_reason, str):
        return "stop_sequence", delta.stop_reason
    return "end_turn", None


def _empty_block(part: Part) -> dict[str, Any]:
    match part:
        case TextDelta():
            return {"type": "text", "text": ""}
        case ReasoningDelta():
            return {"type": "thinking", "thinking": "", "signature": ""}
        case ToolCallDelta():
            return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": {}}


def _delta(part: Part) -> dict[str, Any] | None:
    match part:
        case TextDelta():
            return {"type": "text_delta", "text": part.text}
        case ReasoningDelta():
            return {"type": "thinking_delta", "thinking": part.text}
        case ToolCallDelta():
            said = part.arguments
            return {"type": "input_json_delta", "partial_json": said} if said else None


def _block(part: Part) -> dict[str, Any]:
    match part:
        case TextDelta():
            return _empty_block(part) | {"text": part.text}
        case ReasoningDelta():
            return _empty_block(part) | {"thinking": part.text}
        case ToolCallDelta():
            said = arguments_json(part.arguments).encode()
            return _empty_block(part) | {"input": Raw(said)}

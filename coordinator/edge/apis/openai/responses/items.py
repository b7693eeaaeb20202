"""The output of a response while it grows. Owns its items, and the events that tell of each: added, delta by delta, done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coordinator.edge.answers.answer import ReasoningDelta, TextDelta, ToolCallDelta
from protocol.ids import new_request_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from coordinator.edge.answers.answer import Part

    Fields = dict[str, Any]

DONE, UNFINISHED, GROWING = "completed", "incomplete", "in_progress"


class Message:
    """Text for the user."""

    kind = TextDelta

    def __init__(self, part: Part) -> None:  # noqa: ARG002 - a call's first part says more
        self._id = f"msg_{new_request_id()}"
        self._text: list[str] = []
        self._logprobs: list[Any] = []

    def added(self, place: Fields) -> Iterator[Fields]:
        """Its first events."""
        yield _event("output_item.added", place, item=self._item(GROWING, []))
        yield self._part("content_part.added", place, self._content("", []))

    def said(self, part: Part, place: Fields, logprobs: Sequence[Any]) -> Iterator[Fields]:
        """More of it."""
        assert isinstance(part, TextDelta)
        self._text.append(part.text)
        self._logprobs += logprobs
        where = self._where(place)
        yield _event("output_text.delta", where, delta=part.text, logprobs=list(logprobs))

    def done(self, place: Fields, status: str) -> Iterator[Fields]:
        """Its last events."""
        text, where = "".join(self._text), self._where(place)
        yield _event("output_text.done", where, text=text, logprobs=self._logprobs)
        yield self._part("content_part.done", place, self._content(text, self._logprobs))
        yield _event("output_item.done", place, item=self.told(status))

    def told(self, status: str) -> Fields:
        """The item."""
        return self._item(status, [self._content("".join(self._text), self._logprobs)])

    def _where(self, place: Fields) -> Fields:
        return {"item_id": self._id, **place, "content_index": 0}

    def _part(self, name: str, place: Fields, content: Fields) -> Fields:
        return _event(name, self._where(place), part=content)

    def _content(self, text: str, logprobs: list[Any]) -> Fields:
        return {"type": "output_text", "annotations": [], "logprobs": logprobs, "text": text}

    def _item(self, status: str, content: list[Fields]) -> Fields:
        told = {"id": self._id, "type": "message", "status": status}
        return told | {"role": "assistant", "content": content}


class Reasoning:
    """What was thought."""

    kind = ReasoningDelta

    def __init__(self, part: Part) -> None:  # noqa: ARG002 - a call's first part says more
        self._id = f"rs_{new_request_id()}"
        self._text: list[str] = []

    def added(self, place: Fields) -> Iterator[Fields]:
        """Its first events."""
        yield _event("output_item.added", place, item=self._item(GROWING, []))
        yield _event("content_part.added", self._where(place), part=self._content(""))

    def said(self, part: Part, place: Fields, logprobs: Sequence[Any]) -> Iterator[Fields]:  # noqa: ARG002
        """More of it."""
        assert isinstance(part, ReasoningDelta)
        self._text.append(part.text)
        yield _event("reasoning_text.delta", self._where(place), delta=part.text)

    def done(self, place: Fields, status: str) -> Iterator[Fields]:
        """Its last events."""
        text, where = "".join(self._text), self._where(place)
        yield _event("reasoning_text.done", where, text=text)
        yield _event("content_part.done", where, part=self._content(text))
        yield _event("output_item.done", place, item=self.told(status))

    def told(self, status: str) -> Fields:
        """The item."""
        return self._item(status, [self._content("".join(self._text))])

    def _where(self, place: Fields) -> Fields:
        return {"item_id": self._id, **place, "content_index": 0}

    def _content(self, text: str) -> Fields:
        return {"type": "reasoning_text", "text": text}

    def _item(self, status: str, content: list[Fields]) -> Fields:
        told = {"id": self._id, "type": "reasoning", "status": status}
        return told | {"summary": [], "content": content}


class FunctionCall:
    """A call of a tool."""

    kind = ToolCallDelta

    def __init__(self, part: Part) -> None:
        assert isinstance(part, ToolCallDelta)
        self._id = f"fc_{new_request_id()}"
        self._call_id, self._name = part.call_id, part.name
        self._arguments: list[str] = []

    def added(self, place: Fields) -> Iterator[Fields]:
        """Its first event."""
        yield _event("output_item.added", place, item=self._item(GROWING, ""))

    def said(self, part: Part, place: Fields, logprobs: Sequence[Any]) -> Iterator[Fields]:  # noqa: ARG002
        """More of it."""
        assert isinstance(part, ToolCallDelta)
        if part.arguments:
            self._arguments.append(part.arguments)
            where = {"item_id": self._id, **place}
            yield _event("function_call_arguments.delta", where, delta=part.arguments)

    def done(self, place: Fields, status: str) -> Iterator[Fields]:
        """Its last events."""
        said, where = "".join(self._arguments), {"item_id": self._id, **place}
        yield _event("function_call_arguments.done", where, arguments=said)
        yield _event("output_item.done", place, item=self.told(status))

    def told(self, status: str) -> Fields:
        """The item."""
        return self._item(status, "".join(self._arguments))

    def _item(self, status: str, arguments: str) -> Fields:
        told = {"id": self._id, "type": "function_call", "status": status}
        return told | {"call_id": self._call_id, "name": self._name, "arguments": arguments}


Item = Message | Reasoning | FunctionCall
ITEMS: tuple[type[Message] | type[Reasoning] | type[FunctionCall], ...] = (
    *(Message, Reasoning, FunctionCall),
)


class Output:
    """Parts of an answer, grouped into items; `told` are those that are done."""

    def __init__(self) -> None:
        self.told: list[Fields] = []
        self._open: tuple[Item, int] | None = None

    def push(self, part: Part, logprobs: Sequence[Any]) -> Iterator[Fields]:
        """More of the open item, or of another."""
        position = part.position if isinstance(part, ToolCallDelta) else 0
        if self._open is None or not self._goes_on(part, position):
            yield from self.close(DONE)
            item = next(kind for kind in ITEMS if isinstance(part, kind.kind))(part)
            self._open = item, position
            yield from item.added(self._place)
        item, _ = self._open
        yield from item.said(part, self._place, logprobs)

    def close(self, status: str) -> Iterator[Fields]:
        """The open item ends with this status."""
        if self._open is None:
            return
        item, _ = self._open
        yield from item.done(self._place, status)
        self.told.append(item.told(status))
        self._open = None

    def _goes_on(self, part: Part, position: int) -> bool:
        assert self._open is not None
        item, open_position = self._open
        return isinstance(part, item.kind) and position == open_position

    @property
    def _place(self) -> Fields:
        return {"output_index": len(self.told)}


def _event(name: str, place: Fields, **fields: Any) -> Fields:
    return {"type": f"response.{name}", **place, **fields}

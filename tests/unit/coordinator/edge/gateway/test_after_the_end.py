"""A message of Anthropic's dialect ends once: nothing is said behind its stop reason."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from coordinator.edge.gateway.hearing import AnthropicListener, BrokenStream
from protocol.finish import FinishReason

TEXT = {"type": "text_delta", "text": "more"}
CALL = {"type": "tool_use", "id": "t", "name": "f", "input": {}}


def hear(listener: AnthropicListener, kind: str, **fields: Any) -> list[Any]:
    return listener.hear(orjson.dumps({"type": kind} | fields))


def ended(reason: str = "end_turn") -> AnthropicListener:
    listener = AnthropicListener()
    block = {"type": "text", "text": "Hi"}
    hear(listener, "content_block_start", index=0, content_block=block)
    (end,) = hear(listener, "message_delta", delta={"stop_reason": reason})
    assert end.finish_reason is FinishReason.STOP
    return listener


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("content_block_delta", {"index": 0, "delta": TEXT}),
        ("content_block_start", {"index": 1, "content_block": CALL}),
    ],
)
def test_words_after_the_end_break_the_stream(kind: str, fields: dict[str, Any]) -> None:
    with pytest.raises(BrokenStream):
        hear(ended(), kind, **fields)


def test_an_end_that_is_told_twice_is_one() -> None:
    listener = ended()
    told = {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 4}}
    assert hear(listener, "message_delta", **told) == []
    assert hear(listener, "content_block_stop", index=0) == []
    assert hear(listener, "message_stop") == []
    assert listener.is_over
    assert listener.counted.output == 4

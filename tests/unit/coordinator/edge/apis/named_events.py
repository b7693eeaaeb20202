"""What the APIs whose events have names have in common for their tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from coordinator.cluster.scripted_service import ScriptedService
    from coordinator.edge.text.tokenizer import TextTokenizer


def named_events(text: str) -> list[dict[str, Any]]:
    """The events of a whole stream, each named as its type."""
    lines = text.split("\n\n")
    assert lines.pop() == ""
    found = []
    for line in lines:
        name, data = line.split("\n")
        fields = orjson.loads(data.removeprefix("data: "))
        assert name == f"event: {fields['type']}"
        found.append(fields)
    return found


def prompt_of(service: ScriptedService, tokenizer: TextTokenizer) -> str:
    """What the model was given last."""
    return tokenizer.decode(service.generations[-1].prompt_token_ids, skip_special_tokens=False)

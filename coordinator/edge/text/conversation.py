"""A conversation in nobody's dialect. Owns what a request brings to a prompt; knows no tokenizer and no template."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from coordinator.edge.text.control_tokens import ROLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Turn:
    """One message, its text in one piece. `others` are what templates may know besides: earlier tool calls, names."""

    role: str
    content: str
    others: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a chat template renders, in nobody's dialect. `continue_final_turn` goes on within the last turn."""

    turns: Sequence[Turn]
    tools: Sequence[Mapping[str, Any]] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_turn: bool = False
    add_special_tokens: bool = False

    def brought(self) -> list[str]:
        """Every text in it that came with the request, keys of objects too; names of known roles did not."""
        found = list(_texts([self.tools, self.template_kwargs]))
        for turn in self.turns:
            found += [turn.content, *_texts(turn.others)]
            if turn.role not in ROLES:
                found.append(turn.role)
        return found

    def with_final(self, content: str) -> Conversation:
        """The same with other words in its last turn."""
        return replace(self, turns=[*self.turns[:-1], replace(self.turns[-1], content=content)])

    def context(self) -> dict[str, Any]:
        """As templates know it, by the names that the field's templates use."""
        return {
            **self.template_kwargs,
            "messages": [
                {**turn.others, "role": turn.role, "content": turn.content} for turn in self.turns
            ],
            "tools": self.tools,
            "documents": None,
            "add_generation_prompt": self.add_generation_prompt and not self.continue_final_turn,
        }


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)

"""A conversation in nobody's dialect. Owns what a request brings to a prompt; knows no tokenizer and no template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence  # noqa: TC003 - msgspec reads the annotations
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from coordinator.edge.text.control_tokens import ROLES

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an earlier answer made; `arguments` is the text that the model wrote, an object of JSON or not."""

    name: str
    arguments: str = "{}"
    call_id: str = ""

    def parsed(self) -> dict[str, Any]:
        """An object of any arguments: what is none becomes the one entry of an object."""
        try:
            arguments = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            return {"arguments": self.arguments}
        return arguments if isinstance(arguments, dict) else {"arguments": self.arguments}


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: a text, or several. `reasoning` is what an answer thought before it.

    `others` are what templates may know besides: names, ids of calls that a result answers. `path` is what
    errors call the message; without one it is its place in `messages`.
    """

    role: str
    content: str | tuple[str, ...] = ""
    others: Mapping[str, Any] = field(default_factory=dict)
    calls: Sequence[ToolCall] = ()
    reasoning: str = ""
    path: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        """Its content, one text or several."""
        return (self.content,) if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """Its content in one piece."""
        return "\n".join(self.texts)

    def ending_with(self, text: str) -> Turn:
        """The same with another last text."""
        content = text if isinstance(self.content, str) else (*self.content[:-1], text)
        return replace(self, content=content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a chat template renders. `continue_final_turn` goes on within the last turn.

    `template_kwargs` are variables that a client asks for, `template_hints` such as are set where the template reads
    them and forgotten elsewhere. `tools` have OpenAI's form (`{"type": "function", "function": {"name": …}}`), which is what templates know;
    `documents` have a `title` and a `text`. `path` is what the client calls its turns, for errors.
    """

    turns: Sequence[Turn]
    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    template_hints: Mapping[str, bool | str] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_turn: bool = False
    add_special_tokens: bool = False
    path: str = "messages"

    def brought(self) -> list[str]:
        """Every text in it that came with the request, keys of objects too; names of known roles did not."""
        found = list(_texts([self.tools, self.documents, self.template_kwargs]))
        for turn in self.turns:
            found += turn.texts
            if turn.others:
                found += _texts(turn.others)
            if turn.reasoning:
                found.append(turn.reasoning)
            for call in turn.calls:
                found += [call.name, call.call_id, call.arguments, *_texts(call.parsed())]
            if turn.role not in ROLES:
                found.append(turn.role)
        return found

    def ending_with(self, text: str) -> Conversation:
        """The same with another last text in its last turn."""
        return replace(self, turns=[*self.turns[:-1], self.turns[-1].ending_with(text)])

    def without_thoughts(self) -> Conversation:
        """The same without what earlier answers thought, for templates that have no room for it."""
        return replace(self, turns=[replace(turn, reasoning="") for turn in self.turns])

    def path_of(self, index: int) -> str:
        """What errors call a turn."""
        return self.turns[index].path or f"messages[{index}]"


def _texts(value: object) -> Iterator[str]:
    """However deep: arguments are nested as deep as a model liked."""
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            yield node
        elif isinstance(node, list | tuple):
            stack += node
        elif isinstance(node, dict):
            stack += node
            stack += node.values()

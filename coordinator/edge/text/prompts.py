"""Conversations and texts to token ids. Owns what a template sees of a conversation; long inputs leave the event loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from coordinator.edge.text.chat_template import ChatTemplate, continue_from

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from coordinator.edge.http.limits import EdgeLimits
    from coordinator.edge.text.tokenizer import TextTokenizer
    from protocol.clock import Clock

Result = TypeVar("Result")


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


@dataclass(frozen=True, slots=True)
class PromptReader:
    """Turns what a client sent into what a worker takes."""

    tokenizer: TextTokenizer
    template: ChatTemplate
    limits: EdgeLimits
    clock: Clock

    async def chat(self, conversation: Conversation) -> list[int]:
        """Token ids of a conversation; the template writes its own special tokens."""
        size = sum(len(turn.content) for turn in conversation.turns)

        def read() -> list[int]:
            text = self.template.render(
                conversation.context(), clock=self.clock, limits=self.limits
            )
            if conversation.continue_final_turn:
                text = continue_from(text, conversation.turns[-1].content)
            special = conversation.add_special_tokens
            return self.tokenizer.encode(text, add_special_tokens=special)

        return await self._run(read, size)

    async def text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of plain text."""
        return await self._run(
            lambda: self.tokenizer.encode(text, add_special_tokens=add_special_tokens), len(text)
        )

    async def _run(self, work: Callable[[], Result], size: int) -> Result:
        if size <= self.limits.inline_text_bytes:
            return work()
        return await asyncio.to_thread(work)

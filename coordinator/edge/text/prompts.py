"""Conversations and texts to token ids. Owns what a template sees of a conversation; long inputs leave the event loop.

A text whose bytes alone are too many for the context is refused before it is tokenized.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coordinator.edge.text.chat_template import ChatTemplate, continue_from
from protocol.errors import ContextLengthExceeded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.edge.http.limits import EdgeLimits
    from coordinator.edge.http.side_work import SideWork
    from coordinator.edge.text.tokenizer import TextTokenizer
    from protocol.clock import Clock

INLINE_TURNS = 32


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
    side: SideWork
    max_model_len: int

    async def chat(self, conversation: Conversation) -> list[int]:
        """Token ids of a conversation; the template writes its own special tokens."""

        def render() -> str:
            context = conversation.context()
            text = self.template.render(context, clock=self.clock, limits=self.limits)
            if conversation.continue_final_turn:
                text = continue_from(text, conversation.turns[-1].content)
            return text

        is_small = _is_small(conversation, self.limits.inline_text_bytes)
        text = render() if is_small else await self.side.run(render)
        special = conversation.add_special_tokens
        return await self.text(text, add_special_tokens=special, param="messages")

    async def text(
        self, text: str, *, add_special_tokens: bool, param: str = "prompt"
    ) -> list[int]:
        """Token ids of plain text, which `param` held. Raises ContextLengthExceeded for one that cannot fit."""
        fewest = self.tokenizer.bound.fewest_tokens(text)
        if fewest > self.max_model_len:
            told = f"your {param} has {len(text)} characters: at least {fewest} tokens."
            raise ContextLengthExceeded(self.max_model_len, told, param)

        def encode() -> list[int]:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

        if len(text) <= self.limits.inline_text_bytes:
            return encode()
        return await self.side.tokenize(encode)


def _is_small(conversation: Conversation, limit: int) -> bool:
    """Whether rendering costs the loop nothing: few turns of text alone, and no more of it than `limit`."""
    turns = conversation.turns
    if len(turns) > INLINE_TURNS or conversation.tools or any(turn.others for turn in turns):
        return False
    return sum(len(turn.content) for turn in turns) <= limit

"""Deltas to chunks and answers, for each endpoint. Owns what a chunk holds; writes to nobody."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from msgspec import UNSET, UnsetType

from coordinator.edge.apis.openai import replies as replies
from coordinator.edge.text.choice_text import TextDelta

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.edge.apis.openai.replies import Choice, Reply, Usage
    from coordinator.edge.text.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """What a request wants to be told."""

    reply_id: str
    created: int
    model: str
    logprobs: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    return_token_ids: bool = False
    prompt_token_ids: list[list[int]] = field(default_factory=list)
    echoes: list[str] = field(default_factory=list)
    choices_per_prompt: int = 1


class ReplyFormat(Protocol):
    """One endpoint's way of saying things."""

    options: ReplyOptions

    def chunk(self, index: int, delta: TextDelta, usage: Usage | None) -> Reply:
        """One chunk of a stream."""
        ...

    def usage_chunk(self, usage: Usage) -> Reply:
        """The chunk after the last, without choices."""
        ...

    def whole(self, deltas: Sequence[TextDelta], usage: Usage) -> Reply:
        """The answer, from everything that each choice said."""
        ...


def joined(deltas: Sequence[TextDelta]) -> TextDelta:
    """All of one choice's deltas as one."""
    last = deltas[-1]
    return TextDelta(
        "".join(delta.text for delta in deltas),
        [token for delta in deltas for token in delta.tokens],
        [token_id for delta in deltas for token_id in delta.token_ids],
        last.finish_reason,
        last.stop_reason,
    )


def _reply(
    options: ReplyOptions, kind: str, choices: list[Choice], usage: Usage | UnsetType | None
) -> Reply:
    return replies.Reply(options.reply_id, kind, options.created, options.model, choices, usage)


def _chunk_usage(options: ReplyOptions, usage: Usage | None) -> Usage | UnsetType | None:
    """Absent unless asked for; null in chunks before the last, or running totals on request."""
    if not options.include_usage:
        return UNSET
    return usage if options.continuous_usage else None


def _stop_reason(delta: TextDelta) -> str | int | UnsetType | None:
    return UNSET if delta.finish_reason is None else delta.stop_reason


class ChatFormat:
    """/v1/chat/completions. The role comes with a choice's first real text, never before."""

    def __init__(self, options: ReplyOptions, tokenizer: TextTokenizer) -> None:
        self.options = options
        self._tokenizer = tokenizer
        self._begun: set[int] = set()

    def chunk(self, index: int, delta: TextDelta, usage: Usage | None) -> Reply:
        """One chunk of a stream."""
        says = replies.Delta()
        if index not in self._begun:
            self._begun.add(index)
            says = replies.Delta("assistant", delta.text)
        elif delta.text:
            says = replies.Delta(content=delta.text)
        choice = replies.ChatChunkChoice(
            index,
            says,
            self._logprobs(delta),
            delta.finish_reason,
            _stop_reason(delta),
            delta.token_ids if self.options.return_token_ids else UNSET,
        )
        kind = "chat.completion.chunk"
        return _reply(self.options, kind, [choice], _chunk_usage(self.options, usage))

    def usage_chunk(self, usage: Usage) -> Reply:
        """The chunk after the last, without choices."""
        return _reply(self.options, "chat.completion.chunk", [], usage)

    def whole(self, deltas: Sequence[TextDelta], usage: Usage) -> Reply:
        """The answer."""
        choices: list[Choice] = [
            replies.ChatChoice(
                index,
                replies.ChatMessage("assistant", delta.text),
                self._logprobs(delta),
                delta.finish_reason,
                _stop_reason(delta),
                delta.token_ids if self.options.return_token_ids else UNSET,
            )
            for index, delta in enumerate(deltas)
        ]
        reply = _reply(self.options, "chat.completion", choices, usage)
        if self.options.return_token_ids:
            reply.prompt_token_ids = self.options.prompt_token_ids[0]
        return reply

    def _logprobs(self, delta: TextDelta) -> replies.ChatLogprobs | None:
        if not self.options.logprobs:
            return None
        return replies.chat_logprobs(delta.tokens, self._tokenizer)


class CompletionFormat:
    """/v1/completions. With `echo`, a choice's first text is its prompt."""

    def __init__(self, options: ReplyOptions, tokenizer: TextTokenizer) -> None:
        self.options = options
        self._tokenizer = tokenizer
        self._offsets: dict[int, int] = {}

    def chunk(self, index: int, delta: TextDelta, usage: Usage | None) -> Reply:
        """One chunk of a stream."""
        choice = self._choice(index, delta)
        return _reply(self.options, "text_completion", [choice], _chunk_usage(self.options, usage))

    def usage_chunk(self, usage: Usage) -> Reply:
        """The chunk after the last, without choices."""
        return _reply(self.options, "text_completion", [], usage)

    def whole(self, deltas: Sequence[TextDelta], usage: Usage) -> Reply:
        """The answer."""
        choices: list[Choice] = [self._choice(index, delta) for index, delta in enumerate(deltas)]
        return _reply(self.options, "text_completion", choices, usage)

    def _choice(self, index: int, delta: TextDelta) -> replies.CompletionChoice:
        options = self.options
        prompt = index // options.choices_per_prompt
        is_first = index not in self._offsets
        echo = options.echoes[prompt] if is_first and options.echoes else ""
        offset = self._offsets.get(index, 0) + len(echo)
        self._offsets[index] = offset + len(delta.text)
        logprobs = None
        if options.logprobs:
            logprobs = replies.completion_logprobs(delta.tokens, self._tokenizer, offset)
        choice = replies.CompletionChoice(
            index, echo + delta.text, logprobs, delta.finish_reason, _stop_reason(delta)
        )
        if options.return_token_ids:
            choice.token_ids = delta.token_ids
            choice.prompt_token_ids = options.prompt_token_ids[prompt] if is_first else UNSET
        return choice

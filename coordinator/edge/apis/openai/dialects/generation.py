"""Neutral answers to OpenAI's bytes, for each endpoint. Owns what a chunk holds and how a stream is framed.

A stream is `data: ` lines: chunks, perhaps one with the usage, and `[DONE]`. An error is a line too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from msgspec import UNSET, UnsetType

from coordinator.edge.answers.answer import Delta, ToolCallDelta
from coordinator.edge.apis.openai.dialects import replies
from protocol.finish import FinishReason

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from msgspec import Raw

    from coordinator.edge.answers.answer import Ending, Part, Usage
    from coordinator.edge.apis.openai.dialects.prompt_scores import SpelledScores
    from coordinator.edge.apis.openai.dialects.replies import Choice, Reply
    from coordinator.edge.http.error_replies import Failure
    from coordinator.edge.text.tokenizer import TextTokenizer

DONE = b"data: [DONE]\n\n"
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Proxies must neither keep nor gather what passes."""
FINISH_REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.TOOL_CALLS: "tool_calls",
}


@dataclass(frozen=True, slots=True)
class PromptEcho:
    """A prompt as an answer may repeat it; `text` is "" unless the request asked for it."""

    token_ids: list[int]
    text: str = ""
    scores: SpelledScores | None = None

    @property
    def told(self) -> list[Raw | None] | UnsetType:
        """Its log-probabilities, where they are asked for by that name."""
        return UNSET if self.scores is None or self.scores.told is None else self.scores.told


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """What a request wants to be told."""

    reply_id: str
    created: int
    model: str
    prompts: Sequence[PromptEcho] = ()
    logprobs: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    return_token_ids: bool = False
    choices_per_prompt: int = 1


def event(reply: Reply) -> bytes:
    """One line of a stream."""
    return b"data: " + replies.encode(reply) + b"\n\n"


def apart(delta: Delta) -> list[Delta]:
    """The same in pieces that have each call once: clients put chunks together by their calls' places, and do not look
    for a place twice in one. What ends the choice is in the last."""
    groups: list[list[Part]] = [[]]
    for part in delta.parts:
        if isinstance(part, ToolCallDelta) and part.position in _places(groups[-1]):
            groups.append([])
        groups[-1].append(part)
    first, *others = groups
    if not others:
        return [delta]
    begin = replace(delta, parts=first, finish_reason=None, stop_reason=None)
    pieces = [begin, *(Delta(delta.index, parts=group) for group in others)]
    pieces[-1].finish_reason, pieces[-1].stop_reason = delta.finish_reason, delta.stop_reason
    return pieces


def _places(parts: Sequence[Part]) -> set[int]:
    return {part.position for part in parts if isinstance(part, ToolCallDelta)}


class OpenAiDialect:
    """What both endpoints have in common; each says what a choice looks like."""

    stream_media_type = "text/event-stream"
    stream_headers: Mapping[str, str] = STREAM_HEADERS
    whole_media_type = "application/json"
    chunk_object = whole_object = ""

    def __init__(self, options: ReplyOptions, tokenizer: TextTokenizer) -> None:
        self.options = options
        self._tokenizer = tokenizer

    def begin(self, usage: Usage) -> bytes:  # noqa: ARG002 - the first chunk has everything
        """Nothing comes before the first chunk."""
        return b""

    def delta(self, delta: Delta, usage: Usage) -> bytes:
        """A chunk, or as many as it takes for one to say only one thing of a call."""
        return b"".join(event(self._chunk(piece, usage)) for piece in apart(delta))

    def end(self, delta: Delta, ending: Ending) -> bytes:
        """The last chunk, usage if it was asked for, and `[DONE]`; the very last chunk has the timings."""
        *before, piece = apart(delta)
        said = b"".join(event(self._chunk(each, ending.usage)) for each in before)
        last = self._chunk(piece, ending.usage)
        if self.options.include_usage:
            said += event(last)
            last = self._reply(self.chunk_object, [], usage_of(ending.usage))
        if ending.timings is not None:
            last.baton = ending.timings
        return said + event(last) + DONE

    def failure(self, failure: Failure) -> bytes:
        """An error in the place of a chunk."""
        return b"data: " + replies.error_body(failure) + b"\n\n" + DONE

    def whole(self, choices: Sequence[Delta], ending: Ending) -> bytes:
        """The answer."""
        told = [self.whole_choice(delta) for delta in choices]
        reply = self._reply(self.whole_object, told, usage_of(ending.usage))
        self.complete(reply)
        if ending.timings is not None:
            reply.baton = ending.timings
        return replies.encode(reply)

    def chunk_choice(self, delta: Delta) -> Choice:
        """What a chunk holds of a delta."""
        raise NotImplementedError

    def whole_choice(self, delta: Delta) -> Choice:
        """What a whole answer holds of a choice."""
        raise NotImplementedError

    def complete(self, reply: Reply) -> None:
        """What a whole answer says besides its choices."""

    def _chunk(self, delta: Delta, usage: Usage) -> Reply:
        return self._reply(self.chunk_object, [self.chunk_choice(delta)], self._chunk_usage(usage))

    def _reply(
        self, kind: str, choices: list[Choice], usage: replies.Usage | UnsetType | None
    ) -> Reply:
        options = self.options
        return replies.Reply(options.reply_id, kind, options.created, options.model, choices, usage)

    def _chunk_usage(self, usage: Usage) -> replies.Usage | UnsetType | None:
        """Absent unless asked for; null in chunks before the last, or running totals on request."""
        if not self.options.include_usage:
            return UNSET
        return usage_of(usage) if self.options.continuous_usage else None

    def _token_ids(self, delta: Delta) -> list[int] | UnsetType:
        return delta.token_ids if self.options.return_token_ids else UNSET


def usage_of(usage: Usage) -> replies.Usage:
    """Counts as OpenAI names them."""
    prompt, output = usage.num_prompt_tokens, usage.num_output_tokens
    details = replies.PromptTokensDetails(usage.num_cached_tokens)
    thought: replies.CompletionTokensDetails | UnsetType = UNSET
    if usage.num_reasoning_tokens:
        thought = replies.CompletionTokensDetails(usage.num_reasoning_tokens)
    return replies.Usage(prompt, prompt + output, output, details, thought)


def _finish_reason(delta: Delta) -> str | None:
    return None if delta.finish_reason is None else FINISH_REASONS[delta.finish_reason]


def _stop_reason(delta: Delta) -> str | int | UnsetType | None:
    return UNSET if delta.finish_reason is None else delta.stop_reason


class ChatDialect(OpenAiDialect):
    """/v1/chat/completions. The role comes with a choice's first real text, never before."""

    chunk_object, whole_object = "chat.completion.chunk", "chat.completion"

    def __init__(self, options: ReplyOptions, tokenizer: TextTokenizer) -> None:
        super().__init__(options, tokenizer)
        self._begun: set[int] = set()

    def chunk_choice(self, delta: Delta) -> Choice:
        """What a choice adds."""
        says = replies.Delta(content=delta.text or UNSET)
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            says = replies.Delta("assistant", delta.text)
        if delta.parts:
            says.reasoning_content = says.reasoning = delta.reasoning or UNSET
            says.tool_calls = [call_delta(part) for part in delta.calls] or UNSET
        return replies.ChatChunkChoice(
            delta.index,
            says,
            self._logprobs(delta),
            _finish_reason(delta),
            _stop_reason(delta),
            self._token_ids(delta),
        )

    def whole_choice(self, delta: Delta) -> Choice:
        """A message."""
        return replies.ChatChoice(
            delta.index,
            _message(delta),
            self._logprobs(delta),
            _finish_reason(delta),
            _stop_reason(delta),
            self._token_ids(delta),
        )

    def _chunk(self, delta: Delta, usage: Usage) -> Reply:
        """The first one tells of the prompt."""
        is_first = not self._begun
        chunk = super()._chunk(delta, usage)
        if is_first:
            chunk.prompt_logprobs = self._prompt_told
        return chunk

    @property
    def _prompt_told(self) -> list[Raw | None] | UnsetType:
        """Nothing where others made the prompt."""
        prompts = self.options.prompts
        return prompts[0].told if prompts else UNSET

    def complete(self, reply: Reply) -> None:
        """A chat has one prompt, told once."""
        reply.prompt_logprobs = self._prompt_told
        if self.options.return_token_ids:
            reply.prompt_token_ids = self.options.prompts[0].token_ids

    def _logprobs(self, delta: Delta) -> replies.ChatLogprobs | None:
        if not self.options.logprobs:
            return None
        return replies.chat_logprobs(delta.tokens, self._tokenizer)


def call_delta(part: ToolCallDelta) -> replies.CallDelta:
    """A call's first chunk names it, the others only go on with its arguments."""
    if not part.name:
        return replies.CallDelta(part.position, replies.CalledFunction(part.arguments))
    function = replies.CalledFunction(part.arguments, part.name)
    return replies.CallDelta(part.position, function, part.call_id, "function")


def _message(delta: Delta) -> replies.ChatMessage:
    calls = [
        replies.Call(part.call_id, "function", replies.CalledFunction(part.arguments, part.name))
        for part in delta.calls
    ]
    thought = delta.reasoning or UNSET
    content = None if calls and not delta.text else delta.text
    return replies.ChatMessage("assistant", content, thought, thought, calls or UNSET)


class CompletionDialect(OpenAiDialect):
    """/v1/completions. A choice's first text is its prompt, where that is echoed."""

    chunk_object = whole_object = "text_completion"

    def __init__(self, options: ReplyOptions, tokenizer: TextTokenizer) -> None:
        super().__init__(options, tokenizer)
        self._begun: set[int] = set()

    def chunk_choice(self, delta: Delta) -> Choice:
        """The same in a chunk and in a whole answer."""
        options, index = self.options, delta.index
        prompt = options.prompts[index // options.choices_per_prompt]
        is_first = index not in self._begun
        self._begun.add(index)
        echo = prompt.text if is_first else ""
        logprobs = None
        if options.logprobs:
            logprobs = replies.completion_logprobs(
                delta.tokens, self._tokenizer, [len(prompt.text) + it for it in delta.offsets]
            )
            scores = prompt.scores
            if is_first and scores is not None and scores.echoed is not None:
                logprobs = scores.echoed.before(logprobs)
        choice = replies.CompletionChoice(
            index, echo + delta.text, logprobs, _finish_reason(delta), _stop_reason(delta)
        )
        if is_first:
            choice.prompt_logprobs = prompt.told
        if options.return_token_ids:
            choice.token_ids = delta.token_ids
            choice.prompt_token_ids = prompt.token_ids if is_first else UNSET
        return choice

    def whole_choice(self, delta: Delta) -> Choice:
        """The same in a chunk and in a whole answer."""
        return self.chunk_choice(delta)

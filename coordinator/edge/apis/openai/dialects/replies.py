"""What clients get. Owns the JSON shapes of answers and chunks; encoded by msgspec, not by pydantic per token.

A key that is not asked for is absent (`usage`, `token_ids`), a key that has no value is null
(`logprobs`, `finish_reason`): clients tell the two apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, Raw, UnsetType

from coordinator.edge.telemetry.request_record import Timings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.edge.http.error_replies import Failure
    from coordinator.edge.text.tokenizer import TextTokenizer
    from protocol.sampling import SampledToken

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


class CompletionTokensDetails(msgspec.Struct):
    """How much of the answer was thought."""

    reasoning_tokens: int


class PromptTokensDetails(msgspec.Struct):
    """How much of the prompt was not computed again."""

    cached_tokens: int


class Usage(msgspec.Struct):
    """Token counts of a whole request."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


class TopLogprob(msgspec.Struct):
    """One alternative at one position."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(msgspec.Struct):
    """One chosen token with its alternatives."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """`logprobs` of a chat choice."""

    content: list[ChatLogprob | Raw]


class CompletionLogprobs(msgspec.Struct):
    """`logprobs` of a completion choice: parallel lists."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | Raw | None]

    def before(self, others: CompletionLogprobs) -> CompletionLogprobs:
        """These, then the others."""
        return CompletionLogprobs(
            self.text_offset + others.text_offset,
            self.token_logprobs + others.token_logprobs,
            self.tokens + others.tokens,
            self.top_logprobs + others.top_logprobs,
        )


class CalledFunction(msgspec.Struct):
    """Which function a call names, and with what."""

    arguments: str
    name: str | UnsetType = UNSET


class CallDelta(msgspec.Struct):
    """What a chunk adds to a call: all but the arguments are in its first."""

    index: int
    function: CalledFunction
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class Call(msgspec.Struct):
    """A call of a whole answer."""

    id: str
    type: str
    function: CalledFunction


class Delta(msgspec.Struct):
    """What a chat chunk adds. Reasoning has both names that clients look for."""

    role: str | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[CallDelta] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct):
    """One choice in a chat chunk."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatMessage(msgspec.Struct):
    """The answer of a chat."""

    role: str
    content: str | None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[Call] | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    """One choice of a whole chat answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class CompletionChoice(msgspec.Struct):
    """One choice of a completion: the same in a chunk and in a whole answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[Raw | None] | UnsetType = UNSET


Choice = ChatChunkChoice | ChatChoice | CompletionChoice


class Reply(msgspec.Struct):
    """An answer or a chunk of one."""

    id: str
    object: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[Raw | None] | UnsetType = UNSET
    baton: Timings | UnsetType = UNSET


encode = msgspec.json.Encoder().encode
MAX_UNSPELLED = 8
"""Of more tokens in a choice each is encoded by itself: one call for a long answer, or for one of 128 choices, would keep
everybody waiting."""


def error_body(failure: Failure) -> bytes:
    """`{"error": {message, type, param, code}}`, in a response or in a stream."""
    fields = {
        "message": failure.message,
        "type": failure.kind,
        "param": failure.param,
        "code": failure.code,
    }
    return encode({"error": fields})


def chat_logprobs(tokens: list[SampledToken], tokenizer: TextTokenizer) -> ChatLogprobs:
    """Chat form; bytes are exact where text cannot be (part of a character)."""
    content: list[ChatLogprob | Raw] = []
    is_long = len(tokens) > MAX_UNSPELLED
    for token in tokens:
        if token.logprob is None:
            continue
        top = [
            _top_logprob(token_id, logprob, tokenizer) for token_id, logprob in token.logprob.top
        ]
        own = _top_logprob(token.token_id, token.logprob.logprob, tokenizer)
        told = ChatLogprob(own.token, own.logprob, own.bytes, top)
        content.append(Raw(encode(told)) if is_long else told)
    return ChatLogprobs(content)


def _top_logprob(token_id: int, logprob: float, tokenizer: TextTokenizer) -> TopLogprob:
    text, exact = tokenizer.token_text(token_id), tokenizer.token_bytes(token_id)
    return TopLogprob(text, max(logprob, LOWEST_LOGPROB), list(exact))


def completion_logprobs(
    tokens: list[SampledToken], tokenizer: TextTokenizer, offsets: list[int]
) -> CompletionLogprobs:
    """Completions form; `offsets` are where the tokens' texts begin."""
    told, is_long = CompletionLogprobs([], [], [], []), len(tokens) > MAX_UNSPELLED
    for token, text_offset in zip(tokens, offsets, strict=True):
        if token.logprob is None:
            continue
        text = tokenizer.token_text(token.token_id)
        logprob = max(token.logprob.logprob, LOWEST_LOGPROB)
        told.text_offset.append(text_offset)
        told.token_logprobs.append(logprob)
        told.tokens.append(text)
        best = by_text(text, logprob, token.logprob.top, tokenizer)
        told.top_logprobs.append(Raw(encode(best)) if is_long else best)
    return told


def by_text(
    text: str, logprob: float, top: Sequence[tuple[int, float]], tokenizer: TextTokenizer
) -> dict[str, float]:
    """A token and the alternatives to it, the likeliest first, by their texts. Parts of characters have one text, U+FFFD: it
    means the token itself, elsewhere the likeliest of them."""
    told = {text: logprob}
    for token_id, value in top:
        told.setdefault(tokenizer.token_text(token_id), max(value, LOWEST_LOGPROB))
    return told

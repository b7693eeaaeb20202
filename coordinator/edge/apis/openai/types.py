"""What clients may send. Owns the pydantic models behind `/openapi.json`; no meaning beyond types and ranges.

Unknown fields are accepted and ignored, as the field's servers do. Known fields that this server
cannot honour are in `UNSUPPORTED`: a value that would change the answer is refused by name, a value
that asks for nothing (null, "none", false) passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from coordinator.edge.http import limits
from coordinator.edge.http.field_errors import LARGE_OBJECT, WRONG_TYPE, wrong
from coordinator.edge.http.field_types import (
    Bool,
    Float,
    Int,
    Lenient,
    Penalty,
    Stops,
    StopString,
    Texts,
    TokenIds,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def _few_biases(value: object) -> object:
    """Counted first: pydantic would collect an error for every entry of a huge object."""
    if isinstance(value, dict) and len(value) > limits.MAX_LOGIT_BIAS:
        told = f"must have at most {limits.MAX_LOGIT_BIAS} entries, but has {len(value)}"
        wrong(LARGE_OBJECT, told)
    return value


def _token_id(name: object) -> object:
    """Names of members are texts in JSON, these of digits alone: pydantic would take "5.0", "+5" and " 5" for 5."""
    if isinstance(name, str) and not (name.isascii() and name.isdigit()):
        wrong(WRONG_TYPE, "must be a token id")
    return name


def _off(value: object) -> object:
    """False asks for nothing."""
    return None if value is False else value


ShortText = Annotated[str, Field(max_length=limits.MAX_REQUEST_ID_CHARACTERS, strict=True)]
Documents = Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=limits.MAX_DOCUMENTS)]


class KvHint(Lenient):
    """One thing that a client suggests about cached keys and values; whoever knows its type reads its payload."""

    action_id: ShortText
    action_type: ShortText
    action_version: ShortText
    payload: dict[str, Any] = Field(default_factory=dict)


class KvHints(Lenient):
    """vLLM's and SGLang's envelope. Hints are suggestions: what is not known is ignored."""

    protocol_version: ShortText
    message_id: ShortText
    actions: Annotated[list[KvHint], Field(fail_fast=True, max_length=limits.MAX_HINTS)] = Field(
        default_factory=list
    )


class StreamOptions(Lenient):
    """What a stream tells besides text."""

    include_usage: Bool | None = None
    continuous_usage_stats: Bool | None = None


class GenerationRequest(Lenient):
    """Fields that both generation endpoints share."""

    model: str | None = None
    max_tokens: Annotated[Int, Field(ge=1)] | None = None
    min_tokens: Annotated[Int, Field(ge=0)] | None = None
    n: Annotated[Int, Field(ge=1, le=limits.MAX_CHOICES)] | None = None
    temperature: Annotated[Float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[Float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[Float, Field(gt=0, le=2)] | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[int, BeforeValidator(_token_id), Field(ge=0)],
                Annotated[Float, Field(ge=-100, le=100)],
            ],
            BeforeValidator(_few_biases),
            Field(max_length=limits.MAX_LOGIT_BIAS),
        ]
        | None
    ) = None
    seed: Annotated[Int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopString | Stops | None = None
    stop_token_ids: Annotated[TokenIds, Field(max_length=limits.MAX_STOP_TOKEN_IDS)] | None = None
    include_stop_str_in_output: Bool | None = None
    ignore_eos: Bool | None = None
    skip_special_tokens: Bool | None = None
    stream: Bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: Bool | None = None
    return_timings: Bool | None = None
    prompt_logprobs: (
        Annotated[Int, BeforeValidator(_off), Field(ge=0, le=limits.MAX_LOGPROBS)] | None
    ) = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | Bool | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[Texts, Field(min_length=1)] | None = None
    guided_grammar: str | None = None
    json_schema: dict[str, Any] | str | Bool | None = None
    grammar: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    kv_hints: KvHints | None = None
    cache_salt: Annotated[str, Field(max_length=limits.MAX_CACHE_SALT_CHARACTERS)] | None = None
    priority: Annotated[Int, Field(ge=-limits.MOST_PRIORITY, le=limits.MOST_PRIORITY)] | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_continuous_usage(self) -> bool:
        """Whether every chunk carries usage so far."""
        return self.wants_usage and bool(
            self.stream_options and self.stream_options.continuous_usage_stats
        )


class ContentPart(Lenient):
    """One part of a message; only text is served."""

    type: str
    text: str | None = None


class Message(Lenient):
    """One turn of a conversation."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | Annotated[list[ContentPart], Field(fail_fast=True)] | None = None


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[
        list[Message], Field(fail_fast=True, min_length=1, max_length=limits.MAX_MESSAGES)
    ]
    max_completion_tokens: Annotated[Int, Field(ge=1)] | None = None
    logprobs: Bool | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=limits.MAX_LOGPROBS)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=limits.MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required", "any"] | dict[str, Any] | None = None
    parallel_tool_calls: Bool | None = None
    documents: Documents | None = None
    add_generation_prompt: Bool | None = None
    continue_final_message: Bool | None = None
    add_special_tokens: Bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: str | TokenIds | Texts | Annotated[list[TokenIds], Field(fail_fast=True)]
    max_tokens: Annotated[Int, Field(ge=0)] | None = None
    echo: Bool | None = None
    logprobs: Annotated[Int, Field(ge=0, le=limits.MAX_LOGPROBS)] | None = None
    add_special_tokens: Bool | None = None


class TokenizeRequest(Lenient):
    """POST /tokenize: a text, or a conversation through the chat template."""

    model: str | None = None
    prompt: str | None = None
    messages: (
        Annotated[
            list[Message], Field(fail_fast=True, min_length=1, max_length=limits.MAX_MESSAGES)
        ]
        | None
    ) = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=limits.MAX_TOOLS)] | None = None
    documents: Documents | None = None
    add_special_tokens: Bool | None = None
    add_generation_prompt: Bool | None = None
    continue_final_message: Bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: Bool | None = None


class DetokenizeRequest(Lenient):
    """POST /detokenize."""

    model: str | None = None
    tokens: TokenIds


def _one_of(*harmless: object) -> Callable[[object], bool]:
    return lambda value: any(value == other and type(value) is type(other) for other in harmless)


def _is_text_only(value: object) -> bool:
    return value in (None, [], ["text"])


_NO: object = False
_NOTHING = _one_of(None, _NO, "", 0, 0.0, [], {})
_ABSENT = _one_of(None)

_ONE = _one_of(None, 1, 1.0)
_YES = _one_of(None, True)  # noqa: FBT003 - a value of a field
_FORMS = ("guided_whitespace_pattern", "stop_regex")
_SAMPLERS = ("dry_multiplier", "dynatemp_range", "mirostat", "smoothing_factor", "top_a")

UNSUPPORTED: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys((*_FORMS, *_SAMPLERS), _NOTHING),
    "adapter_id": _ABSENT,
    "allowed_token_ids": _ABSENT,
    "audio": _ABSENT,
    "bad_words": _NOTHING,
    "best_of": _one_of(None, 1),
    "chat_template": _ABSENT,
    "custom_logit_processor": _ABSENT,
    "documents": _NOTHING,
    "echo": _NOTHING,
    "function_call": _one_of(None, "none", "auto"),
    "functions": _NOTHING,
    "include_reasoning": _YES,
    "input_embeds": _ABSENT,
    "input_ids": _ABSENT,
    "length_penalty": _one_of(None, 1, 1.0),
    "logits_processors": _NOTHING,
    "lora_path": _ABSENT,
    "mm_processor_kwargs": _NOTHING,
    "modalities": _is_text_only,
    "n_predict": _one_of(None, -1),
    "n_probs": _NOTHING,
    "no_stop_trim": _NOTHING,
    "prompt_embeds": _ABSENT,
    "repeat_penalty": _ONE,
    "repetition_detection": _ABSENT,
    "return_tokens_as_token_ids": _NOTHING,
    "samplers": _ABSENT,
    "separate_reasoning": _YES,
    "suffix": _one_of(None, ""),
    "tfs_z": _ONE,
    "thinking_token_budget": _ABSENT,
    "top_n_sigma": _one_of(None, -1, -1.0, 0, 0.0),
    "truncate_prompt_tokens": _ABSENT,
    "typical_p": _ONE,
    "use_beam_search": _NOTHING,
    "verbosity": _one_of(None, "medium"),
    "vllm_xargs": _NOTHING,
    "watermark": _NOTHING,
    "web_search_options": _ABSENT,
    "xtc_probability": _NOTHING,
}
"""Known fields of OpenAI's, vLLM's, SGLang's, TGI's and llama.cpp's servers, and which of their values ask for nothing; `documents` are served by chats only, `echo` by completions."""

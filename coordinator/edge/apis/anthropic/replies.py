"""What Anthropic's clients get. Owns the JSON of messages, events, cards and errors; encoded by msgspec, not by pydantic per token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from coordinator.edge.answers.answer import Usage
    from coordinator.edge.http.error_replies import Failure

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
OTHER_REFUSALS = "invalid_request_error"
OTHER_FAILURES = "api_error"
ERROR_REPLY = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}


class UsageReply(msgspec.Struct):
    """Counts; what came from a cache is not in `input_tokens`."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageReply(msgspec.Struct, tag="message", tag_field="type"):
    """An answer, or what of it is known when a stream begins."""

    id: str
    role: str
    model: str
    content: list[dict[str, Any]]
    stop_reason: str | None
    stop_sequence: str | None
    usage: UsageReply


encode = msgspec.json.Encoder().encode


def usage_of(usage: Usage, num_output_tokens: int | None = None) -> UsageReply:
    """Counts as Anthropic names them."""
    cached = usage.num_cached_tokens
    told = usage.num_output_tokens if num_output_tokens is None else num_output_tokens
    return UsageReply(usage.num_prompt_tokens - cached, 0, cached, told)


def error_fields(failure: Failure) -> dict[str, Any]:
    """An error's kind follows from its status."""
    other = OTHER_FAILURES if failure.status >= 500 else OTHER_REFUSALS
    kind = KINDS.get(failure.status, other)
    return {"type": "error", "error": {"type": kind, "message": failure.message}}


def error_body(failure: Failure) -> bytes:
    """`{"type": "error", "error": {type, message}}`."""
    return encode(error_fields(failure))

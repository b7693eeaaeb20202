"""What clients of /v1/responses may send. Owns the pydantic models behind `/openapi.json`; no meaning beyond types and ranges.

Unknown fields are accepted and ignored. Tools of other types than "function" are refused: no server but theirs runs those.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from coordinator.edge.http import limits
from coordinator.edge.http.field_errors import LARGE_OBJECT, wrong
from coordinator.edge.http.field_types import Bool, Float, Int, Lenient


def _few_entries(value: object) -> object:
    """Counted first: pydantic would collect an error for every entry of a huge object."""
    if isinstance(value, dict) and len(value) > limits.MAX_METADATA:
        told = f"must have at most {limits.MAX_METADATA} entries, but has {len(value)}"
        wrong(LARGE_OBJECT, told)
    return value


Label = Annotated[str, Field(max_length=limits.MAX_LABEL_CHARACTERS)]
"""What a response says again, and nobody reads."""
Metadata = Annotated[
    dict[
        Annotated[str, Field(max_length=limits.MAX_METADATA_KEY_CHARACTERS)],
        Annotated[str, Field(max_length=limits.MAX_METADATA_CHARACTERS)],
    ],
    BeforeValidator(_few_entries),
    Field(max_length=limits.MAX_METADATA),
]


class Part(Lenient):
    """A piece of a message, a result or a thought."""

    type: str
    text: str | None = None
    refusal: str | None = None


Parts = Annotated[list[Part], Field(fail_fast=True)]


class Item(Lenient):
    """One step of a conversation; without a type it is a message."""

    type: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | Parts | None = None
    summary: Parts | None = None
    encrypted_content: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | Parts | None = None


class FlatTool(Lenient):
    """A tool; `name` and what follows are a function's."""

    type: str
    name: Annotated[str, Field(min_length=1, max_length=limits.MAX_TOOL_NAME_CHARACTERS)] | None = (
        None
    )
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Bool | None = None


class TextConfig(Lenient):
    """What form the answer has."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ReasoningConfig(Lenient):
    """How much to think."""

    effort: Label | None = None
    summary: Label | None = None


class ResponsesRequest(Lenient):
    """POST /v1/responses."""

    model: str | None = None
    input: str | Annotated[list[Item], Field(fail_fast=True, max_length=limits.MAX_MESSAGES)] = ""
    instructions: str | None = None
    previous_response_id: (
        Annotated[str, Field(max_length=limits.MAX_REQUEST_ID_CHARACTERS)] | None
    ) = None
    store: Bool | None = None
    stream: Bool | None = None
    background: Bool | None = None
    max_output_tokens: Annotated[Int, Field(ge=1)] | None = None
    max_tool_calls: Annotated[Int, Field(ge=1, le=2**31 - 1)] | None = None
    temperature: Annotated[Float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=limits.MAX_LOGPROBS)] | None = None
    seed: Annotated[Int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    include: Annotated[list[str], Field(max_length=64)] | None = None
    tools: Annotated[list[FlatTool], Field(fail_fast=True, max_length=limits.MAX_TOOLS)] | None = (
        None
    )
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: Bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    metadata: Metadata | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    service_tier: str | None = None
    priority: Annotated[Int, Field(ge=-limits.MOST_PRIORITY, le=limits.MOST_PRIORITY)] | None = None

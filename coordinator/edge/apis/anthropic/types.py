"""What Anthropic's clients may send. Owns the pydantic models behind `/openapi.json`; no meaning beyond types and ranges.

Unknown fields are accepted and ignored. `cache_control`, `metadata` and `service_tier` are such: prefixes are cached
whoever asks, and nothing else depends on them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from coordinator.edge.http import limits
from coordinator.edge.http.field_types import Bool, Float, Int, Lenient, Stops


class Block(Lenient):
    """A piece of a message; which of the other fields it has depends on its type."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | Annotated[list[Block], Field(fail_fast=True)] | None = None
    is_error: Bool | None = None
    source: str | dict[str, Any] | None = None
    title: str | None = None
    context: str | None = None
    citations: dict[str, Any] | list[Any] | None = None


Blocks = Annotated[list[Block], Field(fail_fast=True)]


class Message(Lenient):
    """One turn of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | Blocks


class ClientTool(Lenient):
    """A tool that the client runs; one of another `type` than "custom" is the vendor's own and is refused."""

    type: str | None = None
    name: Annotated[str, Field(min_length=1, max_length=limits.MAX_TOOL_NAME_CHARACTERS)]
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    input_examples: list[Any] | None = None
    defer_loading: Bool | None = None
    allowed_callers: list[str] | None = None
    strict: Bool | None = None


class Choice(Lenient):
    """Whether to call a tool, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: Bool | None = None


class Thinking(Lenient):
    """Whether to think before answering."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Int | None = None


class OutputConfig(Lenient):
    """What form the answer has."""

    effort: str | None = None
    task_budget: dict[str, Any] | None = None
    format: dict[str, Any] | None = None


class CountRequest(Lenient):
    """POST /v1/messages/count_tokens."""

    model: str | None = None
    messages: Annotated[
        list[Message], Field(fail_fast=True, min_length=1, max_length=limits.MAX_MESSAGES)
    ]
    system: str | Blocks | None = None
    tools: (
        Annotated[list[ClientTool], Field(fail_fast=True, max_length=limits.MAX_TOOLS)] | None
    ) = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest):
    """POST /v1/messages."""

    max_tokens: Annotated[Int, Field(ge=1)]
    stop_sequences: Stops | None = None
    stream: Bool | None = None
    temperature: Annotated[Float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Int, Field(ge=-1, le=2**31 - 1)] | None = None
    seed: Annotated[Int, Field(ge=-(2**63), le=2**63 - 1)] | None = None

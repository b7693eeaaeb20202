"""What Ollama's clients may send. Owns the pydantic models behind `/openapi.json`; no meaning beyond types and ranges.

Unknown fields and options are accepted and ignored: those that say how Ollama's own engine loads a model (`num_ctx`, `num_gpu` …)
and `keep_alive` where models stay. Samplers that there are not here are refused, unless their value asks for nothing.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from coordinator.edge.http import limits
from coordinator.edge.http.field_types import (
    Bool,
    Float,
    Int,
    KeepAlive,
    Lenient,
    Penalty,
    Stops,
    StopString,
    Texts,
)


class Options(Lenient):
    """How to sample. `num_predict` below zero is no limit but the server's."""

    num_predict: Int | None = None
    temperature: Annotated[Float, Field(ge=0, le=2)] | None = None
    top_k: Annotated[Int, Field(ge=-1, le=2**31 - 1)] | None = None
    top_p: Annotated[Float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[Float, Field(ge=0, le=1)] | None = None
    seed: Annotated[Int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopString | Stops | None = None
    repeat_penalty: Annotated[Float, Field(gt=0, le=2)] | None = None
    repeat_last_n: Annotated[Int, Field(ge=-1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    mirostat: Int | None = None
    typical_p: Float | None = None
    tfs_z: Float | None = None
    penalize_newline: Bool | None = None


class ModelRequest(Lenient):
    """POST /api/show; `name` is what older clients call it."""

    model: str | None = None
    name: str | None = None


class EmbedRequest(ModelRequest):
    """POST /api/embed, and /api/embeddings with its one `prompt`."""

    input: str | Texts | None = None
    prompt: str | None = None
    truncate: Bool | None = None
    dimensions: Annotated[Int, Field(ge=1)] | None = None
    options: Options | None = None
    keep_alive: KeepAlive | None = None


class AnswerBody(ModelRequest):
    """Fields that both generation endpoints share."""

    stream: Bool | None = None
    options: Options | None = None
    format: str | dict[str, Any] | None = None
    keep_alive: KeepAlive | None = None
    think: Bool | str | None = None
    logprobs: Bool | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=limits.MAX_LOGPROBS)] | None = None


class GenerateRequest(AnswerBody):
    """POST /api/generate."""

    prompt: str | None = None
    system: str | None = None
    raw: Bool | None = None


class Message(Lenient):
    """One turn of a conversation."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class ChatRequest(AnswerBody):
    """POST /api/chat."""

    messages: Annotated[list[Message], Field(fail_fast=True, max_length=limits.MAX_MESSAGES)] = (
        Field(default_factory=list)
    )
    tools: (
        Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=limits.MAX_TOOLS)] | None
    ) = None

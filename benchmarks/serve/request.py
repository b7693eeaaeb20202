"""One request of a load, and the bytes that ask for it. Owns the JSON bodies of both endpoints; sends nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import orjson

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

Backend = Literal["openai", "openai-chat"]
PATHS: Mapping[str, str] = {"openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """What to ask. `num_prompt_tokens` is 0 where only the server can know it; `arrival_s` counts
    from the start of the run and is None where a schedule decides."""

    prompt: str | list[int] | list[dict[str, Any]]
    num_prompt_tokens: int
    max_tokens: int
    arrival_s: float | None = None


@dataclass(frozen=True)
class BodyMaker:
    """Makes JSON bodies. `extra` is merged into each: sampling, `ignore_eos`, `--extra-body`."""

    backend: Backend
    model: str
    extra: Mapping[str, Any]

    def body(self, request: BenchRequest) -> bytes:
        """One streaming request with its usage asked for; ConfigError for a prompt the endpoint cannot take."""
        fields = {
            "model": self.model,
            **self._prompt(request),
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.extra,
        }
        return orjson.dumps(fields)

    def _prompt(self, request: BenchRequest) -> dict[str, Any]:
        prompt = request.prompt
        if self.backend == "openai-chat":
            return {"messages": as_messages(prompt), "max_completion_tokens": request.max_tokens}
        if is_messages(prompt):
            raise ConfigError("--backend openai: the dataset has messages; use openai-chat")
        return {"prompt": prompt, "max_tokens": request.max_tokens}


def is_messages(prompt: object) -> bool:
    """Whether a prompt is a conversation and not text or token ids."""
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict)


def as_messages(prompt: str | list[int] | list[dict[str, Any]]) -> list[Any]:
    """A conversation; ConfigError for token ids, which chat cannot carry."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not is_messages(prompt):
        raise ConfigError(
            "--backend openai-chat: chat takes no token ids; give --prompt-format text"
        )
    return list(prompt)

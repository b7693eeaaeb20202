"""What every route needs. Owns the served model's names and the checks that need a model."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from coordinator.edge.http.request_body import read_body
from protocol.errors import ModelNotFound

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from starlette.requests import Request

    from coordinator.edge.answers.generation_run import RunContext
    from coordinator.edge.answers.sampling_defaults import SamplingDefaults, Vocabulary
    from coordinator.edge.http.limits import EdgeLimits
    from coordinator.edge.text.prompts import PromptReader
    from protocol.model_config import ModelConfig

Parsed = TypeVar("Parsed")
INLINE_BODY_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model made ready in `directory`; the first of `served_names` is what answers call it."""

    served_names: tuple[str, ...]
    directory: Path
    config: ModelConfig
    max_model_len: int

    @property
    def name(self) -> str:
        """The name in answers."""
        return self.served_names[0]


@dataclass(frozen=True, slots=True)
class Edge:
    """One application's parts; made once by `create_app`."""

    model: ServedModel
    context: RunContext
    reader: PromptReader
    limits: EdgeLimits
    defaults: SamplingDefaults
    vocabulary: Vocabulary
    created: int

    def check_model(self, name: str | None) -> None:
        """Raise ModelNotFound for a name that is not served; no name means the served model."""
        if name is not None and name not in self.model.served_names:
            served = ", ".join(self.model.served_names)
            raise ModelNotFound(f"the model {name!r} is not served here; served: {served}", "model")

    async def read(self, request: Request, parse: Callable[[bytes], Parsed]) -> Parsed:
        """The parsed body; large ones are parsed off the event loop."""
        body = await read_body(request, self.limits)
        if len(body) <= INLINE_BODY_BYTES:
            return parse(body)
        return await asyncio.to_thread(parse, body)

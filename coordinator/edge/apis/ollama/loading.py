"""Requests of Ollama's clients that ask nothing: they bring a model into memory, or send it away. Owns what `keep_alive` means there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.edge.answers.responses import unless_left

if TYPE_CHECKING:
    from starlette.requests import Request

    from coordinator.edge.answers.edge import Edge


async def load_or_unload(
    edge: Edge, request: Request, model: str, keep_alive_s: float | None
) -> str:
    """Wait until it is in, as long as the client waits, or with 0 say that it may go; which of both. A group of deployments has no model of its own, and one that
    stays has nothing to do."""
    residents = None if edge.group_of(model) is not None else edge.residents
    name, leaves = edge.of(model).model.name, keep_alive_s == 0
    if residents is not None and leaves:
        residents.unload(name)
    elif residents is not None:
        await unless_left(request, residents.load(name, keep_alive_s))
    return "unload" if leaves else "load"

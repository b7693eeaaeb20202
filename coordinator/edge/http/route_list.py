"""Which paths and methods there are. Owns what an unknown path is told, so that a forgotten /v1 is found at once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.routing import Route, Router

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from starlette.routing import BaseRoute

BASES = ("", "/v1", "/api")
"""What a client's base URL may lack; one that has another API's is not sent to Ollama's."""
OPENED_BY = {
    "/v1/load_lora_adapter": "--enable-lora",
    "/v1/unload_lora_adapter": "--enable-lora",
    "/models/load": "--max-loaded-models or --memory-budget",
    "/models/unload": "--max-loaded-models or --memory-budget",
    "/keys": "--keys-db",
    "/usage": "--keys-db",
    "/cluster/deployments": "--router-config",
}
"""Paths that only a server with an option has."""
MOST_PARTS = 8
CONVERTER = re.compile(r":\w+}")


def _flat(routes: Iterable[BaseRoute]) -> Iterator[Route]:
    """Routes and, where a router was included as a whole, those of it."""
    for route in routes:
        if isinstance(route, Route):
            yield route
        elif isinstance(included := getattr(route, "original_router", None), Router):
            yield from _flat(included.routes)


def joined(routers: Iterable[APIRouter]) -> APIRouter:
    """The routes of several routers that say nothing else, in this order. Including a router instead would analyse each
    of its routes anew, at every level."""
    router = APIRouter()
    for one in routers:
        router.routes.extend(one.routes)
    return router


class RouteList:
    """The routes of an application; asked after all of them are there."""

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        self._routes = routes

    def __iter__(self) -> Iterator[Route]:
        yield from _flat(self._routes)

    def methods_of(self, path: str) -> set[str]:
        """Of every route that this path leads to."""
        found: set[str] = set()
        for route in self:
            if route.path_regex.match(path):
                found |= route.methods or set()
        return found

    def template_of(self, path: str) -> str:
        """The path as its route writes it, or "none": a label that clients cannot multiply."""
        return next((route.path for route in self if route.path_regex.match(path)), "none")

    def advice(self, path: str) -> str:
        """For a path that does not exist: what it was meant to be, if its end is one that does, or else all there are."""
        if (option := OPENED_BY.get(path)) is not None:
            return f"there is no {path} on this server; one that is started with {option} has it"
        parts = path.strip("/").split("/")[:MOST_PARTS]
        for start in range(len(parts)):
            for base in BASES if start == 0 else BASES[:2]:
                candidate = "/".join((base, *parts[start:]))
                if candidate != path and self.methods_of(candidate):
                    return f"there is no {path}; it is {candidate}"
        known = sorted({CONVERTER.sub("}", route.path) for route in self})
        return f"there is no {path}; there are {', '.join(known)}"

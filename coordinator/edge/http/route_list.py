"""Which paths and methods there are. Owns what an unknown path is told, so that a forgotten /v1 is found at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route, Router

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from starlette.routing import BaseRoute

TOLD_PREFIXES = ("/v1", "/tokenize", "/detokenize", "/health", "/metrics")


def _flat(routes: Iterable[BaseRoute]) -> Iterator[Route]:
    """Routes and, where a router was included as a whole, those of it."""
    for route in routes:
        if isinstance(route, Route):
            yield route
        elif isinstance(included := getattr(route, "original_router", None), Router):
            yield from _flat(included.routes)


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
        """For a path that does not exist."""
        bare = "/" + path.strip("/").removeprefix("v1/").removeprefix("v1/")
        for candidate in (f"/v1{bare}", bare):
            if candidate != path and self.methods_of(candidate):
                return f"there is no {path}; it is {candidate}"
        known = sorted({route.path for route in self if route.path.startswith(TOLD_PREFIXES)})
        return f"there is no {path}; there are {', '.join(known)}"

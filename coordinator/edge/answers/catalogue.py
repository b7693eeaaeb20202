"""The models that the edge serves now. Owns the list: revisions come and go while it serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coordinator.edge.answers.served import Served


class Catalogue:
    """Invariant: the first model stays."""

    def __init__(self, models: Iterable[Served]) -> None:
        self.models = tuple(models)

    def add(self, served: Served) -> None:
        """One more, whose names no other has."""
        self.models = (*self.models, served)

    def withdraw(self, name: str) -> None:
        """Nobody is answered by that one any more."""
        first, *others = self.models
        self.models = (first, *(served for served in others if served.model.name != name))

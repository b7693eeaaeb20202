"""Fields that nobody knows. Servers of these APIs take each other's, so a foreign one is let be; but one that looks like a
misspelt field of ours would change an answer in silence, and is refused by its name."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from coordinator.edge.http.field_types import Lenient
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

UNKNOWN_PARAMETER = "unknown_parameter"
SHORTEST, LONGEST = 8, 64
"""Characters of a name that is compared: short ones are near each other by chance, as `top_a` and `top_p` are."""
MOST = 64
"""Unknown fields that are compared; a request with more was not typed by hand."""
LIKENESS = 0.9


def check_spelling(asked: object, path: str = "") -> None:
    """Raise InvalidRequest for an unknown field of a request, or of an object in it, that looks like one that is not given."""
    if not isinstance(asked, Lenient):
        return
    for unknown in _compared(asked.model_extra or ()):
        if near := _near(unknown, type(asked).model_fields.keys() - asked.model_fields_set):
            field = f"{path}{unknown}"
            told = f"unknown field {field!r}; did you mean {near!r}?"
            raise InvalidRequest(told, field, UNKNOWN_PARAMETER)
    for name in asked.model_fields_set & type(asked).model_fields.keys():
        check_spelling(getattr(asked, name), f"{path}{name}.")


def _compared(names: Iterable[str]) -> list[str]:
    return [name for name in names if SHORTEST <= len(name) <= LONGEST][:MOST]


def _near(unknown: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(unknown, sorted(known), 1, LIKENESS)), None)

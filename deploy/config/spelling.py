"""What a person may have meant. Pure."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """What it is the beginning of, else what is spelt like it; None if nothing is."""
    names = list(known)
    begun = [name for name in names if len(word) > 2 and name.startswith(word)]
    near = difflib.get_close_matches(word, begun or names, n=1, cutoff=0.0 if begun else 0.6)
    return near[0] if near else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean …?` when something is near, else nothing."""
    near = nearest(word, known)
    return f"; did you mean {near!r}?" if near else ""

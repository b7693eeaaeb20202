"""What stands behind the `?` of operators' questions. Owns how its values are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_DIGITS = 18


def check_names(given: Iterable[str], known: Sequence[str]) -> None:
    """Raise InvalidRequest for a parameter that there is not."""
    for name in given:
        if name not in known:
            told = f"there is no parameter {name!r}; there are {', '.join(known)}"
            raise InvalidRequest(told, name)


def whole_number(told: str, name: str) -> int:
    """Of decimal digits; raises InvalidRequest."""
    if not told.isdecimal() or len(told) > MAX_DIGITS:
        raise InvalidRequest(f"{name} is a whole number", name)
    return int(told)


def choice(told: str, name: str, choices: Sequence[str]) -> str:
    """One of them; raises InvalidRequest."""
    if told not in choices:
        raise InvalidRequest(f"{name} is {' or '.join(choices)}", name)
    return told

"""Named values of a file that somebody wrote. Owns how a value is asked for, and the sentences that name file and field.

A value `os.environ/NAME` is that variable's. What nobody asked for when a section is done is refused. No value is in a message
but numbers: it may be a key.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NoReturn

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

ENVIRONMENT = "os.environ/"
MOST_WHOLE = 2**53


class Section:
    """Some named values; what was not asked for when it is done is refused."""

    def __init__(self, values: object, where: str, variables: Mapping[str, str]) -> None:
        if not isinstance(values, dict):
            raise ConfigError(f"{where} must be a mapping of names to values")
        self._values = values
        self._where = where
        self._variables = variables
        self._known: set[str] = set()

    def refuse(self, name: str, why: str) -> NoReturn:
        """Say which field it is."""
        raise ConfigError(f"{self._where}: {name} {why}")

    def get(self, name: str) -> Any:
        """The value, with its variable's in its place; None where there is none."""
        self._known.add(name)
        value = self._values.get(name)
        if isinstance(value, str) and value.startswith(ENVIRONMENT):
            variable = value.removeprefix(ENVIRONMENT)
            if variable not in self._variables:
                self.refuse(name, f"needs the environment variable {variable}, which is not set")
            return self._variables[variable]
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A text that says something."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or not value.strip():
            self.refuse(name, "must be a text" if value is not None else "is missing")
        return value

    def number(self, name: str, least: float = 0.0) -> float | None:
        """A finite number, of at least `least`."""
        value = self.get(name)
        if value is None:
            return None
        if isinstance(value, str):
            value = self._number_in(name, value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(name, "must be a number")
        if isinstance(value, int) and abs(value) > MOST_WHOLE:
            self.refuse(name, "is too large a number")
        if not math.isfinite(value) or value < least:
            self.refuse(name, f"must be a number of at least {least:g}, but is {value}")
        return float(value)

    def _number_in(self, name: str, text: str) -> float:
        """Variables are text."""
        try:
            return float(text)
        except ValueError:
            self.refuse(name, "must be a number")

    def seconds(self, name: str) -> float | None:
        """A time to wait for something, which is more than none."""
        value = self.number(name)
        if value == 0:
            self.refuse(name, "must be more than 0")
        return value

    def one_name(self, name: str) -> str:
        """A text that means one thing, not all that begin like it."""
        told = self.text(name)
        if "*" in told:
            self.refuse(name, f"must be one name, and no pattern: {told[:80]!r}")
        return told

    def whole(self, name: str, least: int = 0) -> int | None:
        """A whole number."""
        value = self.number(name, least)
        if value is not None and (value != int(value) or value > 2**53):
            self.refuse(name, f"must be a whole number, but is {value:g}")
        return None if value is None else int(value)

    def switch(self, name: str) -> bool:
        """True or false."""
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            self.refuse(name, "must be true or false")
        return bool(value)

    def names(self, name: str) -> dict[str, tuple[str, ...]]:
        """`[{a: [b, c]}, …]`, as fallbacks are written."""
        told = self.get(name)
        if told is None:
            return {}
        if not isinstance(told, list) or not all(isinstance(one, dict) for one in told):
            self.refuse(name, "must be a list such as [{group: [other group]}]")
        found: dict[str, tuple[str, ...]] = {}
        for one in told:
            for group, others in one.items():
                if str(group) in found:
                    self.refuse(f"{name}.{group}", "is there twice")
                found[str(group)] = self._several(f"{name}.{group}", others)
        return found

    def several(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        value = self.get(name)
        return () if value is None else self._several(name, value)

    def _several(self, name: str, value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self.refuse(name, "must be a list of names")
        return tuple(value)

    def within(self, name: str) -> Section:
        """A section of it; an empty one where there is none."""
        value = self.get(name)
        where = f"{self._where}: {name}"
        return Section({} if value is None else value, where, self._variables)

    def has(self, name: str) -> bool:
        """Whether it says something of it."""
        return self._values.get(name) is not None

    def texts(self) -> dict[str, str]:
        """All of it, as text."""
        return {str(name): self.text(name) for name in self._values}

    def done(self) -> None:
        """Raise ConfigError for what nobody asked for."""
        others = [str(name) for name in self._values if name not in self._known]
        if others:
            told = f"is not known here; known: {', '.join(sorted(map(str, self._known)))}"
            self.refuse(others[0][:80], told)

"""One option of `baton serve`. Owns what there is to say of an option; which there are is in `deploy.config.options`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from deploy.config.values import Choice

if TYPE_CHECKING:
    from collections.abc import Callable

ON, OFF = True, False


@dataclass(frozen=True)
class Option:
    """One option. `name` is the long option without dashes, which is also its YAML key.

    `parse` turns text into a value and raises ValueError with a sentence for people.
    """

    name: str
    parse: Callable[[str], Any]
    default: Any
    help: str
    aliases: tuple[str, ...] = ()
    metavar: str = "VALUE"
    kind: Literal["value", "switch", "several"] = "value"
    secret: bool = False

    @property
    def choices(self) -> tuple[str, ...]:
        """All that it may be, where that is a list of words."""
        return self.parse.names if isinstance(self.parse, Choice) else ()

    @property
    def field(self) -> str:
        """Its attribute in `ServeConfig`."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return "BATON_" + self.field.upper()

"""What one rendering of a template may cost. Owns the bounds of time and size, and how large a value is once it is written.

A template is a program that came with a model. Whatever it does is paid for before it is done: a result of `most`
characters is the largest that there may be, all results together may have `BUDGET` times as many, and the clock is looked
at whenever something is paid. So a rendering ends soon after its deadline, and its memory has a bound.
"""

from __future__ import annotations

from collections.abc import ItemsView, KeysView, Mapping, Sequence, Set, ValuesView
from typing import TYPE_CHECKING, Any

from jinja2.runtime import Undefined
from jinja2.utils import Namespace

from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from protocol.clock import Clock

BUDGET = 16
ENTRY = 16
"""What an entry of a list counts for, in characters."""
MAX_DEPTH = 256
MAX_BITS = 1 << 16
_ATOMS = (str, int, float, bool, type(None), Undefined)
_LISTED = (list, tuple, Set, KeysView, ValuesView, ItemsView)


class TemplateTooSlow(InvalidRequest):
    """The template does not end in time."""


class TemplateTooLarge(InvalidRequest):
    """The template makes more than it may."""


def too_large() -> TemplateTooLarge:
    """What is raised before memory is taken."""
    return TemplateTooLarge("the chat template makes too large a text or list", "messages")


def is_atom(value: object) -> bool:
    """Whether nothing is inside."""
    return isinstance(value, _ATOMS)


def size_of(value: object) -> int:
    """A value's own size, without what is inside: what a copy of it takes."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Sequence | Mapping | Set):
        return ENTRY * len(value)
    return 0


def weight_of(value: object, most: int, indent: int = 0) -> int:
    """How many characters the value has once it is written, roughly, with `indent` more a level. A list that is in
    another twice counts twice, as it is written twice. TemplateTooLarge beyond `most`, or MAX_DEPTH levels."""
    if isinstance(value, str):
        return len(value)
    total, depth, level = 0, 0, [value]
    while level:
        if depth > MAX_DEPTH:
            raise too_large()
        below: list[object] = []
        for item in level:
            total += depth * indent + _weigh_one(item, below)
            if total > most:
                raise too_large()
        depth, level = depth + 1, below
    return total


def _weigh_one(item: object, below: list[object]) -> int:
    """Its own weight; what is inside is put into `below`."""
    kind = type(item)
    if kind is str:
        return len(item)  # type: ignore[arg-type]
    if kind is list or kind is tuple:
        below += item  # type: ignore[arg-type]
        return ENTRY * len(item)  # type: ignore[arg-type]
    if isinstance(item, int):
        return item.bit_length() // 3
    below += _inside(item)
    return size_of(item)


def _inside(item: object) -> Iterable[object]:
    if isinstance(item, Mapping):
        return [*item.keys(), *item.values()]
    if isinstance(item, Namespace):
        attributes: dict[str, Any] = object.__getattribute__(item, "_Namespace__attrs")
        return attributes.values()
    return item if isinstance(item, _LISTED) else ()


class Meter:
    """One rendering's account."""

    __slots__ = ("_clock", "_deadline_s", "_left", "most")

    def __init__(self, clock: Clock, deadline_s: float, most: int) -> None:
        self.most = most
        self._clock = clock
        self._deadline_s = deadline_s
        self._left = BUDGET * most

    def tick(self) -> None:
        """Raise TemplateTooSlow once the deadline is past."""
        if self._clock.now_s() > self._deadline_s:
            raise TemplateTooSlow("the chat template takes too long", "messages")

    def spend(self, size: int) -> None:
        """Pay for a result of this size."""
        self._left -= size
        if size > self.most or self._left < 0:
            raise too_large()
        self.tick()

    def check(self, *values: object, indent: int = 0) -> int:
        """What the values have together once they are written; TemplateTooLarge where that is too much."""
        weights = [weight_of(value, self.most, indent) for value in values if not is_atom(value)]
        weights += [len(value) for value in values if isinstance(value, str)]
        total = sum(weights)
        if total > self.most:
            raise too_large()
        return total

    def spend_on(self, *values: object, indent: int = 0) -> None:
        """Pay for writing the values."""
        self.spend(self.check(*values, indent=indent))

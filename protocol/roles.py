"""What a worker is given to do. Owns the roles; on the wire they are their names."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")


class Role(enum.StrEnum):
    """What a worker's pool of blocks is for. Prefill and decode are schedulers over the same engine: a worker that has one
    can play either. A store has none: it keeps what others computed. Prefill is named first everywhere."""

    PREFILL = "prefill"
    DECODE = "decode"
    STORE = "store"

    @property
    def computes(self) -> bool:
        """Whether it is given requests."""
        return self is not Role.STORE

    @property
    def other(self) -> Role:
        """The role of the counterpart, of the two that compute."""
        if self is Role.STORE:
            raise AssertionError("a store has no counterpart")
        return Role.DECODE if self is Role.PREFILL else Role.PREFILL


COMPUTING = (Role.PREFILL, Role.DECODE)
"""Those that are given requests; prefill first."""


def by_name(values: Mapping[Role, T]) -> dict[str, T]:
    """The same under the roles' plain names, as JSON has it."""
    return {role.value: value for role, value in values.items()}

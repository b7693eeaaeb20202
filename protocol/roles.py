"""What a worker is given to do. Owns the two roles; on the wire they are their names."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")


class Role(enum.StrEnum):
    """A scheduler over the same engine: any worker can play either. Prefill is named first everywhere."""

    PREFILL = "prefill"
    DECODE = "decode"

    @property
    def other(self) -> Role:
        """The role of the counterpart."""
        return Role.DECODE if self is Role.PREFILL else Role.PREFILL


def by_name(values: Mapping[Role, T]) -> dict[str, T]:
    """The same under the roles' plain names, as JSON has it."""
    return {role.value: value for role, value in values.items()}

"""One page of a list, by the id of an entry that a client knows. Owns where a page begins and ends, and whether more is behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence


def page_after(ids: Sequence[str], limit: int, known: str | None, param: str) -> tuple[slice, bool]:
    """(the next `limit` entries, whether more follow) from the beginning, or from behind the entry `known`. Raises
    InvalidRequest, which names `param`, where there is none."""
    begin = 0 if known is None else _place(ids, known, param) + 1
    return slice(begin, begin + limit), begin + limit < len(ids)


def page_before(ids: Sequence[str], limit: int, known: str, param: str) -> tuple[slice, bool]:
    """(the `limit` entries right before the entry `known`, whether more come before them). Raises as `page_after`."""
    end = _place(ids, known, param)
    begin = max(end - limit, 0)
    return slice(begin, end), begin > 0


def _place(ids: Sequence[str], known: str, param: str) -> int:
    if known not in ids:
        told = f"{param} names no entry of this list: begin again without it"
        raise InvalidRequest(told, param)
    return ids.index(known)

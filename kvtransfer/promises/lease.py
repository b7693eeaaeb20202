"""Promises to readers. Owns which blocks are promised under which lease, and until when; pure.

A lease keeps a hold on its blocks, so they cannot be reused while it runs. Its deadline counts from
grant or renewal, on the holder's own clock. When it ends the hold is released: a reader that comes
later is told so, and one in the middle of its read finds out by the digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.kv.block_pool import Hold
    from protocol.clock import Clock


@dataclass(slots=True)
class _Lease:
    hold: Hold
    deadline_s: float
    covered: frozenset[int] = frozenset()

    def covers(self, block_ids: Iterable[int]) -> bool:
        """Whether all are in the hold, which may have grown since the last question."""
        if len(self.covered) != len(self.hold.block_ids):
            self.covered = frozenset(self.hold.block_ids)
        return self.covered.issuperset(block_ids)


class LeaseTable:
    """At most one lease an id; `release` and `expire` end it exactly once.

    `allows` may be called from other threads: it only reads.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._leases: dict[str, _Lease] = {}
        self.granted = 0
        self.released = 0
        self.expired = 0

    def __len__(self) -> int:
        return len(self._leases)

    def __contains__(self, lease_id: object) -> bool:
        return lease_id in self._leases

    def grant(self, lease_id: str, hold: Hold, duration_s: float) -> None:
        """Promise the blocks of `hold` for `duration_s` seconds from now; the lease owns the hold."""
        if lease_id in self._leases:
            raise InternalError("a lease id is granted once")
        self._leases[lease_id] = _Lease(hold, self._clock.now_s() + duration_s)
        self.granted += 1

    def renew(self, lease_id: str, duration_s: float) -> bool:
        """Let the lease run for `duration_s` from now; False when it is over."""
        lease = self._leases.get(lease_id)
        if lease is None:
            return False
        lease.deadline_s = self._clock.now_s() + duration_s
        return True

    def release(self, lease_id: str) -> bool:
        """End the lease and release its hold; False when it was over already."""
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            return False
        self.released += 1
        lease.hold.release()
        return True

    def expire(self) -> list[str]:
        """End every lease whose deadline passed; returns their ids."""
        now_s = self._clock.now_s()
        over = [name for name, lease in self._leases.items() if lease.deadline_s <= now_s]
        for lease_id in over:
            self._leases.pop(lease_id).hold.release()
        self.expired += len(over)
        return over

    def allows(self, lease_id: str, block_ids: Iterable[int]) -> bool:
        """Whether the lease runs and covers all these blocks."""
        lease = self._leases.get(lease_id)
        return lease is not None and lease.covers(block_ids)

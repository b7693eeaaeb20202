"""What changed in the cluster lately. Owns a bounded list of it, for pages that are opened later; reads the books, changes nothing.

It looks now and then and compares with what it saw: whoever changes something need not tell it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from coordinator.cluster.books import Books
    from protocol.clock import Clock
    from protocol.roles import Role

KEPT = 200
EVERY_S = 0.5
WORDS = {
    "starting": "is starting",
    "ready": "is ready",
    "draining": "finishes what it has",
    "asleep": "is asleep",
}


@dataclass(frozen=True, slots=True)
class Change:
    """`number` grows by one from change to change."""

    number: int
    at_s: float
    subject: str
    text: str


class _Seen(NamedTuple):
    """One worker at a look."""

    incarnation: str
    role: Role
    state: str


class ChangeLog:
    """The last `KEPT` changes, oldest first."""

    def __init__(self, books: Books, clock: Clock) -> None:
        self._books, self._clock = books, clock
        self._changes: deque[Change] = deque(maxlen=KEPT)
        self._number = 0
        self._looked_s = float("-inf")
        self._seen: dict[str, _Seen] = {}
        self._target: dict[Role, int] = {}
        self._waits: dict[str, str] = {}
        self._refused: set[tuple[str, float]] = set()
        self._away = ""

    def add(self, subject: str, text: str) -> None:
        """Something that a look at the books does not show."""
        self._number += 1
        self._changes.append(Change(self._number, self._clock.now_s(), subject, text))

    def look(self) -> None:
        """Take note of what is different now."""
        now_s = self._clock.now_s()
        if now_s - self._looked_s < EVERY_S:
            return
        self._looked_s = now_s
        self._look_at_pools()
        self._look_at_workers()

    def _look_at_pools(self) -> None:
        pools = self._books.pools
        if pools.target != self._target:
            self._target = pools.target
            self.add("", "wanted: " + ", ".join(f"{n} {role}" for role, n in self._target.items()))
        if pools.away != self._away:
            self.add("", pools.away or "workers can be started and stopped again")
            self._away = pools.away
        waits = {slot.worker_id: slot.waits_for for slot in pools if slot.waits_for}
        for name, what in waits.items():
            if self._waits.get(name) != what:
                self.add(name, f"waits for {what}")
        self._waits = waits
        refused = {(refusal.reason, refusal.at_s): refusal for refusal in pools.refusals}
        for key, refusal in refused.items():
            if key not in self._refused:
                self.add(refusal.worker_id, f"was not started: {refusal.reason}")
        self._refused = set(refused)

    def _look_at_workers(self) -> None:
        registry = self._books.registry
        now = {r.worker_id: _Seen(r.incarnation, r.role, r.state.value) for r in registry}
        for name, seen in now.items():
            before = self._seen.get(name)
            if before is not None and before.role != seen.role:
                self.add(name, f"is {seen.role} now")
            if before is None or before[::2] != seen[::2]:
                self.add(name, WORDS[seen.state])
        for name in self._seen.keys() - now.keys():
            left = registry.departures.get(name)
            self.add(name, "left" if left is None else f"was lost: {left.reason}")
        self._seen = now

    def view(self) -> list[dict[str, Any]]:
        """`changes` of `GET /cluster`."""
        now_s = self._clock.now_s()
        return [
            {
                "number": change.number,
                "for_s": round(now_s - change.at_s, 1),
                "subject": change.subject,
                "text": change.text,
            }
            for change in self._changes
        ]

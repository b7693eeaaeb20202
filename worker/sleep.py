"""Whether this worker's memory is away. Owns what was asked for and what is so; which bytes that is, the engine knows.

awake ──Sleep, and nothing is here──► asleep ──Sleep(none), or work──► awake
                                         └── no memory: stays asleep, and says why
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from protocol.errors import BatonError
from protocol.messages.reports import SleepChanged
from protocol.sleeping import Part
from worker.reports import pending_reads

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engine.context import WorkerContext
    from worker.outbox import Outbox
    from worker.roles import Roles

log = logging.getLogger(__name__)
CANNOT = "this worker's memory cannot be given back"


class SleepState:
    """Invariant: while the KV cache is away no block is held or cached, so that none of before can be found, lent or read
    as proven; who is given work takes everything again first."""

    def __init__(self, roles: Roles, outbox: Outbox, context: WorkerContext) -> None:
        self.away: frozenset[Part] = frozenset()
        self._wanted: frozenset[Part] = frozenset()
        self._is_unsaid = False
        self._roles, self._resting = roles, roles.resting
        self._outbox, self._context = outbox, context

    @property
    def is_due(self) -> bool:
        """Whether something is to go, or to be said, and nothing is here that needs it."""
        return self._is_unsaid and (self._wanted <= self.away or self._is_still)

    @property
    def _is_still(self) -> bool:
        roles = self._roles
        return roles.is_empty and not roles.pool.counts().held and not pending_reads(roles)

    def told(self, parts: Iterable[Part]) -> None:
        """These are to be away, when nothing is here; all others come at once."""
        self._wanted = frozenset(parts)
        if self._wanted and self._resting is None:
            self._wanted = frozenset()
            self._say(CANNOT)
            return
        self._is_unsaid = True
        self._take_again(self.away - self._wanted)

    def rest(self) -> None:
        """Every turn: what is to go goes once nothing is here, and that is said."""
        if not self.is_due:
            return
        for part in sorted(self._wanted - self.away):
            if part is Part.KV_CACHE:
                self._roles.pool.drop_cache()
            assert self._resting is not None
            self._resting.give_back(part)
            self.away |= {part}
        self._say()

    def is_awake_for_work(self) -> str:
        """There is work: everything comes again, and nothing goes. Returns why not, if something cannot."""
        self._wanted, was_away = frozenset(), bool(self.away)
        self._is_unsaid = False
        failure = self._take_again(self.away)
        if was_away and not failure:
            self._say()
        return failure

    def _take_again(self, parts: Iterable[Part]) -> str:
        for part in sorted(parts):
            assert self._resting is not None
            try:
                self._resting.take_again(part)
            except BatonError as error:
                log.warning("cannot wake: %s", error)
                self._wanted = self.away
                self._say(str(error))
                return str(error)
            self.away -= {part}
        return ""

    def _say(self, failure: str = "") -> None:
        self._is_unsaid = False
        self._outbox.tell(
            SleepChanged(
                incarnation=self._context.incarnation, parts=sorted(self.away), failure=failure
            )
        )

    def start_over(self) -> None:
        """A new incarnation owes nobody an answer; what is away stays away until there is work."""
        self._wanted, self._is_unsaid = self.away, False

"""Which of several models are in memory, who waits for one, and who goes to make room. Pure: told of time, starts nothing.

    OUT ──Load──► LOADING ──loaded──► IN ──Unload──► LEAVING ──gone──► OUT
                     └──failed──► OUT, and not again before a while

Requests stand in one line. One whose model is in goes at once; the first whose model is out gets the memory next, so that
nobody who came later and needs memory is served before. For what does not fit, pools shrink to a worker of each role, where
that is enough; else models are sent away that nobody uses, the least recently used first, and only where that makes enough
room. What has shrunk grows again where nobody waits for the memory. One that is used never goes; but once the first in line has
waited for `PATIENCE_S`, the least recently loaded of those take nothing new, until it has what it needs.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.planning.throughput import FinishRate
from protocol.errors import InvalidRequest, ModelUnavailable, Overloaded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from protocol.errors import BatonError

PATIENCE_S = 10.0
MAX_BACKOFF_S, MAX_DOUBLINGS = 60.0, 6
KEEP_ALIVE_S = 300.0
"""Ollama's default."""
MAX_HELD = 512


class Presence(enum.Enum):
    """Where a model is."""

    OUT = "unloaded"
    LOADING = "loading"
    IN = "loaded"
    LEAVING = "unloading"


@dataclass(eq=False, slots=True)
class Resident:
    """One model. `keep_alive_s` is how long it stays without use, None for ever: as a client said since it was loaded, else as
    at the beginning. `is_sent_away`: by somebody's word, as soon as nobody uses it who came before that. `taken_bytes` is what it
    has now, `soon_bytes` when its workers that leave have left; with its smallest pools that is `least_bytes`, 0 for what cannot shrink."""

    name: str
    needed_bytes: int
    keep_alive_s: float | None = KEEP_ALIVE_S
    presence: Presence = Presence.OUT
    num_users: int = 0
    used_s: float = 0.0
    loaded_s: float = 0.0
    is_sent_away: bool = False
    failures: int = 0
    failed_because: str = ""
    again_s: float = 0.0
    least_bytes: int = 0
    is_shrunk: bool = False
    usual_keep_alive_s: float | None = field(init=False)
    taken_bytes: int = field(init=False)
    soon_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.usual_keep_alive_s = self.keep_alive_s
        self.least_bytes = self.least_bytes or self.needed_bytes
        self.whole()

    def whole(self) -> None:
        """Its pools are to be as they were configured."""
        self.taken_bytes = self.soon_bytes = self.needed_bytes
        self.is_shrunk = False

    def shrinks(self) -> None:
        """They are to be as small as may be; that takes a while."""
        self.soon_bytes, self.is_shrunk = self.least_bytes, True

    @property
    def is_idle(self) -> bool:
        """In memory, and nobody uses it."""
        return self.presence is Presence.IN and not self.num_users

    @property
    def expires_s(self) -> float | None:
        """When it goes if nobody uses it; None for never."""
        return None if self.keep_alive_s is None else self.used_s + self.keep_alive_s

    def is_over(self, now_s: float) -> bool:
        """Whether it was not used for as long as it may stay."""
        return self.expires_s is not None and now_s >= self.expires_s


@dataclass(eq=False, slots=True)
class Ticket:
    """A request's place in the line, and then its use of the model. `keep_alive_s` is its client's word, if `has_word`.
    `is_owed`: it waited already when somebody sent its model away, which stays for it. `is_order`: it wants its model loaded, and nothing else."""

    model: str
    came_s: float
    keep_alive_s: float | None = None
    has_word: bool = False
    is_admitted: bool = False
    is_owed: bool = False
    is_order: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """Bring it in; `loaded` or `failed` when that is over."""

    model: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Take it out; nobody uses it. `gone` when its memory is free."""

    model: str


@dataclass(frozen=True, slots=True)
class Shrink:
    """A worker of each role is enough for it now; `takes` when others have left."""

    model: str


@dataclass(frozen=True, slots=True)
class Grow:
    """It may have the workers again that it was configured with."""

    model: str


@dataclass(frozen=True, slots=True)
class Admit:
    """It is its turn, and its model is in."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Fail:
    """It will not get its model."""

    ticket: Ticket
    error: BatonError


Action = Load | Unload | Shrink | Grow | Admit | Fail


class Residency:
    """Invariant: what is not OUT takes at most `budget_bytes`, and is at most `max_loaded` models."""

    def __init__(
        self,
        models: Iterable[Resident],
        budget_bytes: int,
        max_loaded: int | None = None,
        max_held: int = MAX_HELD,
        *,
        autoload: bool = True,
    ) -> None:
        """Without `autoload` only orders load a model."""
        self._autoload = autoload
        self.models = {model.name: model for model in models}
        self.budget_bytes, self.max_held = budget_bytes, max_held
        self.max_loaded = len(self.models) if max_loaded is None else max_loaded
        self.line: list[Ticket] = []
        self._finish_rate = FinishRate()

    # ---- what happens

    def ask(self, ticket: Ticket, now_s: float) -> list[Action]:
        """A request came; it fails where too many wait. Raises ModelUnavailable while its model could not be loaded, and
        InvalidRequest where nobody has ordered it."""
        model = self.models[ticket.model]
        comes = model.presence in (Presence.IN, Presence.LOADING) and not model.is_sent_away
        if not (comes or self._autoload or ticket.is_order):
            told = f"the model {model.name!r} is not loaded; load it first: POST /models/load, or baton load"
            raise InvalidRequest(told, "model")
        if model.presence is Presence.OUT and now_s < model.again_s:
            raise ModelUnavailable(model.name, model.failed_because, model.again_s - now_s)
        self.line.append(ticket)
        actions = self.decide(now_s)
        if not ticket.is_admitted and len(self.line) > self.max_held:
            self.line.remove(ticket)
            told = f"{self.max_held} requests wait for models already; try again later"
            actions.append(Fail(ticket, Overloaded(told, self._finish_rate.promise(now_s))))
        else:
            self._finish_rate.begun(now_s)
        return actions

    def leave(self, ticket: Ticket, now_s: float) -> list[Action]:
        """It is over, or its client left: a place in the line is free, or a model has one user less."""
        if ticket.is_admitted:
            model = self.models[ticket.model]
            model.num_users -= 1
            model.used_s = now_s
            self._left(now_s)
        elif ticket in self.line:
            self.line.remove(ticket)
            self._left(now_s)
        return self.decide(now_s)

    def _left(self, now_s: float) -> None:
        """There is room for one more to wait."""
        self._finish_rate.finished(now_s)
        if not self.line and not any(model.num_users for model in self.models.values()):
            self._finish_rate.idle(now_s)

    def loaded(self, name: str, now_s: float) -> list[Action]:
        """It is in."""
        model = self.models[name]
        model.presence, model.loaded_s, model.used_s = Presence.IN, now_s, now_s
        model.failures, model.failed_because, model.again_s = 0, "", 0.0
        return self.decide(now_s)

    def failed(self, name: str, reason: str, now_s: float) -> list[Action]:
        """It could not be loaded, and nothing of it is left: who waits for it hears why."""
        model = self.models[name]
        model.presence, model.failed_because = Presence.OUT, reason
        model.again_s = now_s + min(MAX_BACKOFF_S, 2.0 ** min(model.failures, MAX_DOUBLINGS))
        model.failures += 1
        waited = [ticket for ticket in self.line if ticket.model == name]
        self.line = [ticket for ticket in self.line if ticket.model != name]
        for _ in waited:
            self._left(now_s)
        error = ModelUnavailable(name, reason, model.again_s - now_s)
        return [*(Fail(ticket, error) for ticket in waited), *self.decide(now_s)]

    def gone(self, name: str, now_s: float) -> list[Action]:
        """Its memory is free."""
        self.models[name].presence = Presence.OUT
        return self.decide(now_s)

    def found(self, name: str, *, is_leaving: bool = False) -> None:
        """It is coming in already, or on its way out: another coordinator began that."""
        self.models[name].presence = Presence.LEAVING if is_leaving else Presence.LOADING

    def not_begun(self, name: str) -> None:
        """Nobody could be told to load it: that is decided again, from what is in memory by then."""
        self.models[name].presence = Presence.OUT

    def takes(self, name: str, taken_bytes: int, soon_bytes: int) -> None:
        """What its workers take, as they are: some have left, or an operator changed how many there are."""
        model = self.models[name]
        model.taken_bytes, model.soon_bytes = taken_bytes, soon_bytes

    def resized(self, name: str) -> None:
        """An operator said how large its pools are to be: they stay so until it goes."""
        self.models[name].is_shrunk = False

    @property
    def free_bytes(self) -> int:
        """What nothing takes."""
        here = self._here(Presence.LOADING, Presence.IN, Presence.LEAVING)
        return self.budget_bytes - sum(model.taken_bytes for model in here)

    def send_away(self, name: str, now_s: float) -> list[Action]:
        """Somebody wants it out, as soon as nobody uses it who is here already."""
        model = self.models[name]
        if model.presence in (Presence.IN, Presence.LOADING) and not model.is_sent_away:
            model.is_sent_away = True
            for ticket in self.line:
                ticket.is_owed = ticket.is_owed or ticket.model == name
        return self.decide(now_s)

    # ---- what follows

    def decide(self, now_s: float) -> list[Action]:
        """Everything that can be done now; also called as time passes."""
        actions: list[Action] = [self._unload(m) for m in self._expired(now_s)]
        first: Ticket | None = None
        closed: set[str] = set()
        for ticket in list(self.line):
            model = self.models[ticket.model]
            if model.presence is Presence.IN and (ticket.is_owed or not model.is_sent_away):
                if model.name not in closed:
                    actions.append(self._admit(ticket))
            elif first is None and model.presence in (Presence.OUT, Presence.LEAVING):
                if model.presence is Presence.OUT and self._fits(model):
                    actions.append(self._begin(model))
                else:
                    first = ticket
                    actions += self._make_room(model)
                    closed = self._closed(ticket, now_s)
        if first is None:
            actions += self._growing()
        return actions

    def _expired(self, now_s: float) -> list[Resident]:
        """Whom nobody needs any more; not one that somebody waits for, unless he came after it was sent away."""
        wanted = {t.model for t in self.line if t.is_owed or not self.models[t.model].is_sent_away}
        return [
            model
            for model in self.models.values()
            if model.is_idle
            and model.name not in wanted
            and (model.is_sent_away or model.is_over(now_s))
        ]

    def _begin(self, model: Resident) -> Load:
        model.presence, model.is_sent_away = Presence.LOADING, False
        model.keep_alive_s = model.usual_keep_alive_s
        model.whole()
        return Load(model.name)

    def _admit(self, ticket: Ticket) -> Admit:
        self.line.remove(ticket)
        model = self.models[ticket.model]
        ticket.is_admitted = True
        model.num_users += 1
        if ticket.has_word:
            model.keep_alive_s = ticket.keep_alive_s
        return Admit(ticket)

    def _unload(self, model: Resident) -> Unload:
        model.presence, model.is_sent_away = Presence.LEAVING, False
        return Unload(model.name)

    def _here(self, *presences: Presence) -> list[Resident]:
        return [model for model in self.models.values() if model.presence in presences]

    def _lacks(self, model: Resident, staying: Sequence[Resident], spared: int = 0) -> bool:
        """Whether it does not fit beside these, once who leaves them has left, and `spared` bytes more are free."""
        taken = sum(other.soon_bytes for other in staying) - spared
        return taken + model.needed_bytes > self.budget_bytes or len(staying) + 1 > self.max_loaded

    def _fits(self, model: Resident) -> bool:
        here = self._here(Presence.LOADING, Presence.IN, Presence.LEAVING)
        return model.needed_bytes <= self.free_bytes and len(here) < self.max_loaded

    def _make_room(self, model: Resident) -> list[Action]:
        """Who shrinks and who goes for it: nobody where what leaves already is enough, or where nothing is."""
        staying = self._here(Presence.LOADING, Presence.IN)
        small = [m for m in staying if m.presence is Presence.IN and m.soon_bytes > m.least_bytes]
        small.sort(key=lambda m: (m.num_users > 0, m.used_s))
        for count in range(len(small) + 1):
            if not self._lacks(model, staying, _spared(small[:count])):
                return [self._shrink(other) for other in small[:count]]
        if victims := self._victims(model, staying, ()):
            return [self._unload(other) for other in victims]
        victims = self._victims(model, staying, small)
        if not victims:
            return []
        rest = [self._shrink(other) for other in small if other not in victims]
        return [*rest, *(self._unload(other) for other in victims)]

    def _victims(
        self, model: Resident, here: Sequence[Resident], small: Sequence[Resident]
    ) -> list[Resident]:
        """Whom to send away for it, where these shrink: none where all that are idle are too few."""
        staying, victims = list(here), list[Resident]()
        for idle in sorted((m for m in here if m.is_idle), key=lambda m: m.used_s):
            staying.remove(idle)
            victims.append(idle)
            if not self._lacks(model, staying, _spared([m for m in small if m in staying])):
                return victims
        return []

    def _growing(self) -> list[Action]:
        """What is used, the last used first, where nobody waits for memory and none is about to be free."""
        here = self._here(Presence.LOADING, Presence.IN, Presence.LEAVING)
        if any(m.presence is not Presence.IN or m.soon_bytes != m.taken_bytes for m in here):
            return []
        grown: list[Action] = []
        for model in sorted(
            (m for m in here if m.is_shrunk and m.num_users), key=lambda m: -m.used_s
        ):
            if model.needed_bytes - model.taken_bytes <= self.free_bytes:
                model.whole()
                grown.append(Grow(model.name))
        return grown

    def _shrink(self, model: Resident) -> Shrink:
        model.shrinks()
        return Shrink(model.name)

    def _closed(self, ticket: Ticket, now_s: float) -> set[str]:
        """Who takes nothing new for now, for the sake of the first in line."""
        model = self.models[ticket.model]
        staying = self._here(Presence.LOADING, Presence.IN)
        closed: set[str] = set()
        if now_s - ticket.came_s < PATIENCE_S:
            return closed
        for other in sorted(staying, key=lambda m: (m.num_users > 0, m.loaded_s)):
            if not self._lacks(model, staying):
                break
            staying.remove(other)
            closed.add(other.name)
        return closed


def _spared(models: Iterable[Resident]) -> int:
    """What is free in the end when these shrink."""
    return sum(model.soon_bytes - model.least_bytes for model in models)

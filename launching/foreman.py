"""What a roster wants, done. Owns the one way from its actions to acts; what starting and ending is, the crew knows.

    order, exit, end ──► Foreman ──► Roster: what it means ──► Foreman ──► Crew: start, end, respec, tell, say, fail
                                     Start(after_s) ──later──► due ─┘

The local launcher, Ray's owner and both simulations are crews of this one foreman.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

from launching.roster import End, Fail, Respec, Say, Start, Tell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from launching.roster import Action, Exit, Message, Place, Roster
    from protocol.clock import Clock
    from protocol.messages.launcher import LauncherOrder


class Crew(Protocol):
    """What a launcher can do."""

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Call `action` in that time, unless everything ends before."""
        ...

    def start(self, place: Place) -> None:
        """Fill the place now."""
        ...

    def end(self, place: Place) -> None:
        """End what runs there, if anything does; `Foreman.gone` when nothing is left. May be repeated."""
        ...

    def respec(self, place: Place) -> None:
        """The next start reads a new spec; what runs goes on."""
        ...

    def tell(self, message: Message) -> None:
        """To the coordinator."""
        ...

    def say(self, name: str, text: str) -> None:
        """To people."""
        ...

    def fail(self, error: Exception) -> None:
        """Nothing can be served: end everything, and raise this."""
        ...


class Foreman:
    """Everything that happens goes through here."""

    def __init__(self, roster: Roster, crew: Crew, clock: Clock) -> None:
        self._roster = roster
        self._crew = crew
        self._clock = clock

    def on_order(self, order: LauncherOrder) -> None:
        """The coordinator wants something."""
        self.do(self._roster.on_order(order, self._clock.now_s()))

    def exited(self, name: str, end: Exit) -> None:
        """A process ended, whoever wanted that."""
        self.do(self._roster.exited(name, end, self._clock.now_s()))

    def gone(self, name: str, status: int) -> None:
        """Nothing of it is left, as was wanted."""
        self.do(self._roster.gone(name, status))

    def do(self, actions: Iterable[Action]) -> None:
        """In their order."""
        crew = self._crew
        for action in actions:
            match action:
                case Start(place, after_s) if after_s > 0:
                    crew.later(after_s, partial(self._due, place))
                case Start(place):
                    crew.start(place)
                case End(place):
                    crew.end(place)
                case Respec(place):
                    crew.respec(place)
                case Tell(message):
                    crew.tell(message)
                case Say(name, text):
                    crew.say(name, text)
                case Fail(error):
                    crew.fail(error)

    def _due(self, place: Place) -> None:
        self.do(self._roster.due(place))

"""What a response needs of whatever answers: our own pools' run, or one that goes elsewhere. Owns nothing; a seam."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from coordinator.accounts.booking import Booking
    from coordinator.edge.answers.answer import Delta, Ending, Usage
    from coordinator.edge.telemetry.request_record import RequestFacts


class Run(Protocol):
    """`submit`, `next_delta` until `is_over`, `finish`; `close` comes last, whatever came before.

    `headers` are the answer's own, known with its first delta.
    """

    facts: RequestFacts
    booking: Booking | None
    error: str | None
    num_told_tokens: int
    headers: dict[str, str]

    @property
    def num_choices(self) -> int:
        """How many answers there are, to all prompts."""
        ...

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        ...

    @property
    def num_told(self) -> int:
        """How many tokens, and alternatives to them, there are to spell."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether every choice has ended, and it was said."""
        ...

    async def submit(self) -> None:
        """Admit it; raises what refuses it."""
        ...

    def failed(self, kind: str) -> None:
        """What ended it, or will: the type of an error, or a `Departure`."""
        ...

    def told(self) -> None:
        """What was made so far is on its way to the client."""
        ...

    async def next_delta(self) -> Delta:
        """The next delta of any choice; raises what ends the answer."""
        ...

    def finish(self) -> Ending:
        """Everything but the last bytes is sent. Only when `is_over`."""
        ...

    def close(self, reason: str) -> None:
        """End what has not ended; idempotent."""
        ...

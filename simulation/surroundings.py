"""What a simulated worker sees of its cluster. Owns that view, so that a worker needs no cluster to be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.messages.reports import Output
    from protocol.sleeping import Part
    from simulation.workload import SimRequest


class Surroundings(Protocol):
    """Time, the wires, and what is known of a request."""

    @property
    def now_s(self) -> float:
        """Virtual seconds."""
        ...

    def at(self, at_s: float, action: Callable[[Any], None], argument: Any) -> None:
        """Call `action(argument)` at that time."""
        ...

    def request(self, request_id: str) -> SimRequest | None:
        """What the workload says of a request; None for one that is not of it."""
        ...

    def cached_on(self, worker_id: str, chunks: tuple[int, ...]) -> int:
        """How many of them, from the first on, another worker has; 0 where there is none of that name."""
        ...

    def is_written_by(self, worker_id: str, request_id: str) -> bool:
        """Whether another worker has all that was written of it so far; not where there is none of that name."""
        ...

    def tell(self, worker_id: str, incarnation: str, outputs: list[Output]) -> None:
        """A step brought these."""
        ...

    def land(self, landing: tuple[str, Any]) -> None:
        """KV arrives at the worker that is named first."""
        ...

    def rests(self, worker_id: str, incarnation: str, away: list[Part]) -> None:
        """That memory of a worker is away now."""
        ...

    def goodbye(self, worker_id: str, incarnation: str) -> None:
        """A drained worker has nothing left."""
        ...

"""Requests that wait for room. Owns their order, and who is turned away at once; pure."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from coordinator.cluster.throughput import FinishRate
from protocol.errors import Overloaded, WorkerLost

if TYPE_CHECKING:
    from collections.abc import Iterator

    from coordinator.cluster.books import Books
    from coordinator.cluster.lifecycle import RequestLife
    from protocol.clock import Clock


class WaitingLine:
    """First come, first served; what is replayed has waited longest."""

    def __init__(self, books: Books, clock: Clock, max_requests: int) -> None:
        self.max_requests = max_requests
        self._books = books
        self._lives: deque[RequestLife] = deque()
        self._finish_rate = FinishRate(clock)

    def __len__(self) -> int:
        return len(self._lives)

    def __iter__(self) -> Iterator[RequestLife]:
        return iter(list(self._lives))

    def check_room(self, life: RequestLife) -> None:
        """Raise Overloaded, or WorkerLost where nobody serves. At most one pool-full of requests waits: what
        would wait longer is told to come back."""
        if not self._books.ready():
            raise WorkerLost("no worker is ready; the pools are starting or restarting")
        waiting = sum(self._need(other) for other in self._lives)
        capacity = sum(worker.hello.num_blocks for worker in self._books.decoders())
        if len(self._lives) >= self.max_requests or waiting + self._need(life) > capacity:
            raise Overloaded(
                f"{len(self._lives)} requests wait for KV blocks already; retry later",
                self._finish_rate.time_for(len(self._lives) + 1),
            )

    def _need(self, life: RequestLife) -> int:
        return self._books.ledger.decode_need(life.num_tokens, life.max_new_tokens)

    def add(self, life: RequestLife) -> None:
        """To the end."""
        self._lives.append(life)

    def put_first(self, life: RequestLife) -> None:
        """A replay goes before those that were never sent."""
        self._lives.appendleft(life)

    def first(self) -> RequestLife | None:
        """Whose turn it is."""
        return self._lives[0] if self._lives else None

    def remove(self, life: RequestLife) -> None:
        """It was sent, or is over; harmless when it does not wait."""
        if life in self._lives:
            self._lives.remove(life)

    def finished(self) -> None:
        """A request finished now: from that comes what Retry-After says."""
        self._finish_rate.note()

"""Requests that wait for room. Owns their order, and who is turned away at once; pure."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from coordinator.cluster.lifecycle import Phase
from coordinator.cluster.throughput import FinishRate
from protocol.errors import InvalidRequest, Overloaded, WorkerLost

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
        self._served: set[str] = set()

    def __len__(self) -> int:
        return len(self._lives)

    def __iter__(self) -> Iterator[RequestLife]:
        return iter(list(self._lives))

    def check_room(self, lives: Sequence[RequestLife]) -> None:
        """Raise for a request, all of whose choices come or none: InvalidRequest for what would never fit, WorkerLost
        where nobody serves, Overloaded where others wait. At most one pool-full of requests waits: what would wait
        longer is told to come back; what nobody is before may wait for itself."""
        ready = self._books.ready()
        if not ready:
            raise WorkerLost("no worker is ready; the pools are starting or restarting")
        self._check_possible(lives)
        waiting = sum(self._need(other) for other in self._lives)
        need = sum(map(self._need, lives))
        capacity = sum(worker.hello.num_blocks for worker in self._books.decoders())
        is_full = len(self._lives) + len(lives) > self.max_requests
        if self._lives and (is_full or waiting + need > capacity):
            raise Overloaded(
                f"{len(self._lives)} requests wait for KV blocks already; retry later",
                self._finish_rate.promise(),
            )

    def _check_possible(self, lives: Sequence[RequestLife]) -> None:
        largest = max(worker.hello.num_blocks for worker in self._books.registry)
        size = self._books.ledger.block_size
        for life in lives:
            if (need := self._need(life)) > largest:
                raise InvalidRequest(
                    f"the request needs room for {need * size} tokens in a KV cache that holds {largest * size} "
                    f"tokens: {life.num_tokens} of its prompt and {life.max_new_tokens} to write"
                )

    def _need(self, life: RequestLife) -> int:
        return self._books.ledger.decode_need(life.num_tokens, life.max_new_tokens)

    def add(self, life: RequestLife) -> None:
        """To the end."""
        self._lives.append(life)
        self._served.add(life.request_id)
        self._finish_rate.begun()

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

    def ended(self, life: RequestLife, *, is_well: bool) -> None:
        """A request is over, wherever it was: from good ends comes what Retry-After says."""
        if life.phase is Phase.QUEUED:
            self.remove(life)
        if life.request_id not in self._served:  # an internal one
            return
        self._served.discard(life.request_id)
        if is_well:
            self._finish_rate.finished()
        if not self._served:
            self._finish_rate.idle()

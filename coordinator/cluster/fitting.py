"""What fits a worker at all. Owns whom to tell that none has room for it, also while there is no worker to ask; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from coordinator.cluster.books import Books
    from coordinator.cluster.lifecycle import RequestLife


class Fitting:
    """A request is judged by the largest worker that is here; by the largest of before while there is none. Who was held
    before any worker had been seen is judged by the first."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._unseen: set[str] = set()

    def need(self, life: RequestLife) -> int:
        """Blocks of a decode worker."""
        return self._books.ledger.decode_need(life.num_tokens, life.max_new_tokens)

    def check(self, lives: Sequence[RequestLife]) -> None:
        """InvalidRequest for what would never fit."""
        largest = self._largest()
        for life in lives:
            if (error := self._error(life, largest)) is not None:
                raise error

    def waits(self, life: RequestLife) -> None:
        """It was let in."""
        if not self._books.holding.most_blocks:
            self._unseen.add(life.request_id)

    def impossible(
        self, waiting: Iterable[RequestLife]
    ) -> list[tuple[RequestLife, InvalidRequest]]:
        """Who of these would wait for ever: told once, when it is known."""
        if not self._unseen or not any(worker.role.computes for worker in self._books.registry):
            return []
        held = [life for life in waiting if life.request_id in self._unseen]
        self._unseen.clear()
        largest = self._largest()
        found = ((life, self._error(life, largest)) for life in held)
        return [(life, error) for life, error in found if error is not None]

    def _largest(self) -> int:
        """Blocks of the largest worker; 0 as long as nobody knows."""
        here = (w.hello.num_blocks for w in self._books.registry if w.role.computes)
        return max(here, default=0) or self._books.holding.most_blocks

    def _error(self, life: RequestLife, largest: int) -> InvalidRequest | None:
        need = self.need(life)
        if not largest or need <= largest:
            return None
        size = self._books.ledger.block_size
        return InvalidRequest(
            f"the request needs room for {need * size} tokens in a KV cache that holds {largest * size} "
            f"tokens: {life.num_tokens} of its prompt and {life.max_new_tokens} to write"
        )

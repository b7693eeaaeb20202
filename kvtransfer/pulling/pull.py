"""From announced blocks to a pull, and how it ended. Owns which block goes where, what must prove it, and the counters;
who reads is passed in. Pure."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from engine.kv.sequence import Sequence
    from kvtransfer.cached_run import CachedRun
    from kvtransfer.promises.proofs import BlockProofs
    from protocol.errors import TransferError
    from protocol.messages.peers import BlockOffer
    from protocol.messages.records import PeerAddress

Key = tuple[str, int]
"""(request id, attempt)."""


@dataclass(frozen=True, slots=True)
class PullJob:
    """Read `source_ids` of one remote pool into `target_ids`; block i must hash to `digests[i]`
    under `headers[i]`. `timeout_s` is what the request's deadline leaves, from the read's start."""

    key: Key
    source: PeerAddress
    lease_id: str
    source_ids: SequenceOf[int]
    target_ids: SequenceOf[int]
    headers: SequenceOf[bytes]
    digests: SequenceOf[bytes]
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class PullDone:
    """How a job ended. The targets hold proven bytes exactly when `error` is None.

    `read_s + digest_s` is the time from the job's turn to its end; `road` the transport that it took.
    """

    job: PullJob
    error: TransferError | None
    num_bytes: int = 0
    read_s: float = 0.0
    digest_s: float = 0.0
    road: str = ""


class Pulls(Protocol):
    """Who does the reads: `kvtransfer.pulling.puller`, behind what replaces it after a fence."""

    def submit(self, job: PullJob) -> None:
        """Queue a job; it ends in one PullDone."""
        ...

    def cancel(self, key: Key) -> None:
        """End the waiting jobs of a request; each still ends in its PullDone."""
        ...


class PullingFetcher:
    """Satisfies kvtransfer.sharing.exchange.BlockFetcher: each call becomes one job."""

    def __init__(self, pulls: Pulls, proofs: BlockProofs) -> None:
        self._pulls = pulls
        self._proofs = proofs

    def fetch(
        self,
        source: PeerAddress,
        lease_id: str,
        sequence: Sequence,
        first_block: int,
        offers: SequenceOf[BlockOffer],
        timeout_s: float,
    ) -> None:
        """See kvtransfer.sharing.exchange.BlockFetcher."""
        indices = range(first_block, first_block + len(offers))
        num_tokens = sequence.num_tokens
        self._pulls.submit(
            PullJob(
                key=sequence.key,
                source=source,
                lease_id=lease_id,
                source_ids=[offer.block_id for offer in offers],
                target_ids=[sequence.block_table[index] for index in indices],
                headers=[
                    self._proofs.header(sequence, index, offer.generation, num_tokens)
                    for index, offer in zip(indices, offers, strict=True)
                ],
                digests=[offer.digest for offer in offers],
                timeout_s=timeout_s,
            )
        )

    def fetch_cached(
        self,
        key: Key,
        source: PeerAddress,
        lease_id: str,
        run: CachedRun,
        timeout_s: float,
    ) -> None:
        """See kvtransfer.sharing.exchange.BlockFetcher."""
        generations = [offer.generation for offer in run.offers]
        self._pulls.submit(
            PullJob(
                key=key,
                source=source,
                lease_id=lease_id,
                source_ids=[offer.block_id for offer in run.offers],
                target_ids=list(run.target_ids),
                headers=self._proofs.cached_headers(run.keys, run.first_index, generations),
                digests=[offer.digest for offer in run.offers],
                timeout_s=timeout_s,
            )
        )

    def cancel(self, key: Key) -> None:
        """See kvtransfer.sharing.exchange.BlockFetcher."""
        self._pulls.cancel(key)


@dataclass(slots=True)
class PullCounters:
    """Totals since start, for metrics. Read from anywhere, written under the lock."""

    transfers: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    digest_s: float = 0.0
    failures: int = 0
    failures_by_cause: dict[str, int] = field(default_factory=dict)
    bytes_by_road: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, done: PullDone) -> None:
        """Count one result."""
        with self._lock:
            if done.error is None:
                self.transfers += 1
                self.num_bytes += done.num_bytes
                self.seconds += done.read_s + done.digest_s
                self.digest_s += done.digest_s
                so_far = self.bytes_by_road.get(done.road, 0)
                self.bytes_by_road[done.road] = so_far + done.num_bytes
            else:
                cause = type(done.error).__name__
                self.failures += 1
                self.failures_by_cause[cause] = self.failures_by_cause.get(cause, 0) + 1

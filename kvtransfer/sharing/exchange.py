"""What the two ends of a loan need around them. Owns the protocols; the ends are `lender` and `reader`.

    reader ── Lookup(keys) ──►  lender: matches its prefix cache, leases what it has
           ◄── Found(lease, offers) ──
           reads and proves; the blocks are then cached here under the same keys
           ── Pulled ──►  the lease ends

Nothing depends on a loan: what is not found, not proven or not answered in time is computed by the reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from engine.kv.sequence import Sequence
    from kvtransfer.cached_run import CachedRun
    from kvtransfer.promises.lease import LeaseTable
    from kvtransfer.store.records import LogStats
    from protocol.messages.peers import BlockOffer, PeerMessage
    from protocol.messages.records import PeerAddress

Key = tuple[str, int]
"""(request id, attempt)."""


class BlockProver(Protocol):
    """Digests of blocks of the local pool."""

    def digests(self, sequence: Sequence, indices: SequenceOf[int]) -> list[bytes]:
        """Digests of the sequence's blocks `indices` as they lie in the pool now."""
        ...

    def cached_digests(
        self, keys: SequenceOf[bytes], first_index: int, block_ids: SequenceOf[int]
    ) -> list[bytes]:
        """Digests of cached full blocks with content keys `keys`, as the blocks of a reader's prompt from
        `first_index` on."""
        ...


@dataclass(frozen=True, slots=True)
class Load:
    """Blocks to be read from the tier below into `block_ids` of the pool, in order."""

    number: int
    keys: SequenceOf[bytes]
    block_ids: SequenceOf[int]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The first `count` blocks of a load are there and proven; the others hold nothing."""

    number: int
    count: int


class LowerTier(Protocol):
    """What keeps blocks under the pool of a store: slower, larger, and there after a restart. Nothing here waits."""

    @property
    def stats(self) -> LogStats:
        """What it counts."""
        ...

    def contains(self, key: bytes) -> bool:
        """Whether a load would probably find it."""
        ...

    def load(self, load: Load) -> None:
        """Begin to read; it ends in one Loaded."""
        ...

    def used(self, keys: SequenceOf[bytes], parent: bytes, block_ids: SequenceOf[int]) -> None:
        """These blocks, a run after the block `parent`, are wanted and proven in the pool now: keep them."""
        ...

    def keys(self) -> list[bytes]:
        """All that is there for good."""
        ...

    def take_changes(self) -> tuple[list[bytes], list[bytes]] | None:
        """(stored, gone) since the last call; None when some were forgotten since."""
        ...


class BlockFetcher(Protocol):
    """Starts reads into blocks of the local pool; results come back through a role's `pulled`."""

    def fetch(
        self,
        source: PeerAddress,
        lease_id: str,
        sequence: Sequence,
        first_block: int,
        offers: SequenceOf[BlockOffer],
        timeout_s: float,
    ) -> None:
        """Read the offered blocks into the sequence's blocks `first_block`… and prove them."""
        ...

    def fetch_cached(
        self,
        key: Key,
        source: PeerAddress,
        lease_id: str,
        run: CachedRun,
        timeout_s: float,
    ) -> None:
        """Read the offered blocks of the run and prove them."""
        ...

    def cancel(self, key: Key) -> None:
        """The reads of a sequence are not wanted any more; each still ends by a result."""
        ...


class PeerOutbox(Protocol):
    """Where messages to other workers go."""

    def reply(self, identity: bytes, message: PeerMessage) -> bool:
        """To the reader behind `identity`."""
        ...

    def ask(self, source: PeerAddress, message: PeerMessage) -> None:
        """To a worker that we pull from."""
        ...


@dataclass(frozen=True, slots=True)
class BlockExchange:
    """What a role needs to offer blocks to others and to fetch theirs; a store may have a tier below its pool."""

    prover: BlockProver
    leases: LeaseTable
    fetcher: BlockFetcher
    below: LowerTier | None = None

"""From announced blocks to a pull. Owns which block goes where and what must prove it; who reads is passed in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from kvtransfer.pulling.pull import PullJob

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from engine.kv.sequence import Sequence
    from kvtransfer.promises.proofs import BlockProofs
    from kvtransfer.pulling.pull import Key
    from protocol.messages.peers import BlockOffer
    from protocol.messages.records import PeerAddress


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

    def cancel(self, key: Key) -> None:
        """See kvtransfer.sharing.exchange.BlockFetcher."""
        self._pulls.cancel(key)

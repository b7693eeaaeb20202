"""Both roles of a worker over its one pool, and what it keeps for others. Owns how they are put together, in every process that runs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from decode.role import DecodeRole
from decode.scheduler import DecodeScheduler
from engine.kv.allocation import Allocator
from engine.kv.block_pool import BlockPool
from engine.pace import Pace
from engine.step_limits import scored_tokens
from kvtransfer.promises.proofs import BlockProofs
from kvtransfer.pulling.pull import PullingFetcher
from kvtransfer.sharing.exchange import BlockExchange
from kvtransfer.sharing.keeper import Keeper
from prefill.role import PrefillRole
from prefill.scheduler import PrefillScheduler
from worker.gate import GrammarGate
from worker.metered_runner import MeteredRunner

if TYPE_CHECKING:
    from engine.context import WorkerContext
    from engine.resting import Resting
    from engine.runner_api import Runner
    from kvtransfer.promises.lease import LeaseTable
    from kvtransfer.promises.proofs import Materials
    from kvtransfer.pulling.pull import Pulls
    from kvtransfer.sharing.exchange import LowerTier
    from worker.gate import Grammars
    from worker.outbox import Outbox

Key = tuple[str, int]
"""(request id, attempt)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a worker takes; both roles have the same."""

    num_blocks: int
    block_size: int
    max_num_batched_tokens: int
    max_num_seqs: int
    prefix_caching: bool = True


@dataclass(frozen=True, slots=True)
class Machinery:
    """What a worker computes in, computes with and reads with; without `grammars` its answers have none, without
    `below` its blocks are in its pool or nowhere, without `resting` it cannot sleep."""

    memory: Materials
    runner: Runner
    pulls: Pulls
    grammars: Grammars | None = None
    below: LowerTier | None = None
    resting: Resting | None = None


@dataclass(frozen=True, slots=True)
class Roles:
    """What a worker decides with. Which role gets work is the coordinator's choice."""

    pool: BlockPool
    leases: LeaseTable
    allocator: Allocator
    runner: MeteredRunner
    prefill: PrefillRole
    decode: DecodeRole
    gate: GrammarGate
    keeper: Keeper
    below: LowerTier | None = None
    resting: Resting | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no sequence, offer, fetch or lease is here."""
        roles_are = self.prefill.is_empty and self.decode.is_empty and self.gate.is_empty
        keeps = not self.keeper.is_empty or self.prefill.lender.loading
        return roles_are and not keeps and not len(self.leases)

    @property
    def answer_due_s(self) -> float:
        """When the next source is late with blocks of a prompt; infinity while nobody is asked."""
        return min(self.prefill.prefixes.answer_due_s, self.decode.prefixes.answer_due_s)

    def expire(self) -> None:
        """End what outlived its time, renew what is still wanted."""
        self.gate.expire()
        self.prefill.expire()
        self.decode.expire()
        self.keeper.expire()

    def live(self) -> list[Key]:
        """(request, attempt) of everything that is here."""
        return [*self.prefill.offers, *self.decode.keys(), *self.gate.keys()]

    def drop_all(self) -> None:
        """Fenced: forget everything; blocks being written go when their reads end."""
        self.gate.drop_all()
        self.prefill.drop_all()
        self.decode.drop_all()
        self.keeper.drop_all()

    def forget_reads(self) -> None:
        """None of the reads so far writes any more, and no result of them will come."""
        self.prefill.prefixes.forget_reads()
        self.decode.forget_reads()
        self.keeper.forget_reads()


def build_roles(
    limits: Limits,
    machinery: Machinery,
    leases: LeaseTable,
    outbox: Outbox,
    context: WorkerContext,
) -> Roles:
    """Both roles, empty."""
    pool = BlockPool(limits.num_blocks)
    proofs = BlockProofs(machinery.memory, pool, limits.block_size, context)
    fetcher = PullingFetcher(machinery.pulls, proofs)
    allocator = Allocator(pool, limits.block_size, prefix_caching=limits.prefix_caching)
    tokens, sequences = limits.max_num_batched_tokens, limits.max_num_seqs
    exchange = BlockExchange(proofs, leases, fetcher, machinery.below)
    pace, scored = Pace(tokens), scored_tokens(context.vocab_size)
    metered = MeteredRunner(machinery.runner, context.clock, pace)
    prefill = PrefillRole(
        PrefillScheduler(
            allocator,
            max_num_batched_tokens=tokens,
            max_num_seqs=sequences,
            pace=pace,
            max_scored_tokens=scored,
        ),
        metered,
        exchange,
        outbox,
        context,
    )
    decode = DecodeRole(
        DecodeScheduler(
            allocator,
            max_num_batched_tokens=tokens,
            max_num_seqs=sequences,
            pace=pace,
            max_scored_tokens=scored,
        ),
        metered,
        fetcher,
        outbox,
        context,
    )
    gate = GrammarGate(machinery.grammars, outbox, context)
    keeper = Keeper(pool, exchange, outbox, context)
    below, resting = machinery.below, machinery.resting
    return Roles(pool, leases, allocator, metered, prefill, decode, gate, keeper, below, resting)

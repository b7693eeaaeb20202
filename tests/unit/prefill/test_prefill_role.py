"""The prefill role's reads from other caches: who frees the blocks that a read still writes to."""

from __future__ import annotations

from engine.context import WorkerContext
from engine.kv.allocation import Allocator
from engine.kv.block_pool import BlockPool
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.sharing.exchange import BlockExchange
from prefill.role import PrefillRole
from prefill.scheduler import PrefillScheduler
from protocol.ids import RandomIds
from protocol.messages.orders import Prefill
from protocol.messages.peers import BlockOffer, Found
from protocol.messages.records import PeerAddress, PrefixRun
from protocol.sampling import SamplingParams

HOLDER = PeerAddress(worker_id="S", incarnation="s1", host="h", control="", transports={})
FROM_HOLDER = ("S", "s1")
KEY = ("r", 1)


class Surroundings:
    """Outbox, fetcher, prover, runner and clock of a role that is only told things."""

    def now_s(self) -> float:
        return 100.0

    def ask(self, *_: object) -> None: ...

    def output(self, *_: object) -> None: ...

    def fetch(self, *_: object) -> None: ...

    def cancel(self, *_: object) -> None: ...


def order() -> Prefill:
    return Prefill(
        incarnation="p1",
        request_id="r",
        attempt=1,
        token_ids=list(range(10)),
        num_prompt_tokens=10,
        sampling=SamplingParams(max_tokens=4),
        deadline_in_s=60.0,
        prefix_runs=[PrefixRun(source=HOLDER, begin_tokens=0, end_tokens=8, is_open=True)],
    )


def found() -> Found:
    return Found(
        incarnation="s1",
        request_id="r",
        attempt=1,
        lease_id="l",
        first_block=0,
        offers=[BlockOffer(block_id=i, generation=1, digest=b"") for i in range(2)],
    )


def role_with_a_read() -> PrefillRole:
    """A role in the middle of a read for request r."""
    around = Surroundings()
    pool = BlockPool(8)
    scheduler = PrefillScheduler(Allocator(pool, 4), max_num_batched_tokens=16, max_num_seqs=4)
    context = WorkerContext("P", "p1", b"f", around, RandomIds())
    exchange = BlockExchange(around, LeaseTable(around), around, None)  # type: ignore[arg-type]
    role = PrefillRole(scheduler, around, exchange, around, context)  # type: ignore[arg-type]
    role.prefill(order())
    assert not role.step()
    role.prefixes.hear(FROM_HOLDER, found())
    assert role.prefixes.num_reading == 1
    return role


def held(role: PrefillRole) -> int:
    return role.scheduler.allocator.pool.counts().held


def test_blocks_of_an_aborted_prompt_stay_until_its_read_ends() -> None:
    role = role_with_a_read()
    role.end(KEY)
    assert held(role) == 2
    role.prefixes.pulled(KEY, FROM_HOLDER, None)
    assert held(role) == 0
    assert role.is_empty


def test_repeated_order_does_not_replace_a_read_that_still_writes() -> None:
    """It did: the first read's end counted for the second, whose blocks were then taken for proven while they were still
    being written."""
    role = role_with_a_read()
    role.end(KEY)
    role.prefill(order())
    role.step()
    role.prefixes.hear(FROM_HOLDER, found())
    role.prefixes.pulled(KEY, FROM_HOLDER, None)
    assert role.offers == {}
    assert not role.scheduler.has_work
    assert held(role) == 0
    assert role.scheduler.allocator.pool.is_balanced()

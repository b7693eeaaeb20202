"""The decode role's fetches: who frees the blocks that a read still writes to."""

from __future__ import annotations

from decode.role import DecodeRole
from decode.scheduler import DecodeScheduler
from engine.context import WorkerContext
from engine.kv.allocation import Allocator
from engine.kv.block_pool import BlockPool
from protocol.ids import RandomIds
from protocol.messages.orders import Decode
from protocol.messages.peers import Announce, BlockOffer
from protocol.messages.records import PeerAddress
from protocol.sampling import SamplingParams

SOURCE = PeerAddress(worker_id="P", incarnation="p1", host="h", control="", transports={})
KEY = ("r", 1)


class Surroundings:
    """Outbox, fetcher, runner and clock of a role that is only told things."""

    def now_s(self) -> float:
        return 100.0

    def ask(self, *_: object) -> None: ...

    def transfer_failed(self, *_: object) -> None: ...

    def output(self, *_: object) -> None: ...

    def fetch(self, *_: object) -> None: ...

    def cancel(self, *_: object) -> None: ...


def role_with_a_read() -> DecodeRole:
    """A role in the middle of a read for request r."""
    around = Surroundings()
    scheduler = DecodeScheduler(
        Allocator(BlockPool(8), 4), max_num_batched_tokens=16, max_num_seqs=4
    )
    context = WorkerContext("D", "d1", b"f", around, RandomIds())
    role = DecodeRole(scheduler, around, around, around, context)  # type: ignore[arg-type]
    role.decode(order())
    offers = [BlockOffer(block_id=0, generation=1, digest=b"")]
    role.hear(
        ("P", "p1"),
        Announce(
            incarnation="p1",
            request_id="r",
            attempt=1,
            lease_id="l",
            first_block=0,
            offers=offers,
            num_tokens=4,
        ),
    )
    assert role.fetches[KEY].pending == 1
    return role


def order() -> Decode:
    return Decode(
        incarnation="d1",
        request_id="r",
        attempt=1,
        token_ids=list(range(6)),
        num_prompt_tokens=6,
        sampling=SamplingParams(max_tokens=4),
        deadline_in_s=60.0,
        source=SOURCE,
    )


def held(role: DecodeRole) -> int:
    return role.scheduler.allocator.pool.counts().held


def test_blocks_of_an_aborted_request_stay_until_its_read_ends() -> None:
    role = role_with_a_read()
    role.end(KEY)
    assert held(role) > 0
    role.pulled(KEY, None)
    assert held(role) == 0
    assert role.fetches == {}


def test_repeated_order_does_not_replace_a_read_that_still_writes() -> None:
    """It did: the first read's blocks were never given back, and its end counted for the second."""
    role = role_with_a_read()
    role.end(KEY)
    role.decode(order())
    assert role.num_sequences == 0
    role.pulled(KEY, None)
    assert held(role) == 0
    assert role.scheduler.allocator.pool.is_balanced()


def test_worker_is_not_empty_while_a_cancelled_read_still_writes() -> None:
    """It was: a drained worker said Goodbye over blocks that a read was still writing to."""
    role = role_with_a_read()
    role.end(KEY)
    assert role.num_sequences == 0
    assert not role.is_empty
    role.pulled(KEY, None)
    assert role.is_empty

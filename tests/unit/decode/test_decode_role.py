"""The decode role's fetches: who frees the blocks that a read still writes to."""

from __future__ import annotations

from typing import Any

from decode.role import DecodeRole
from decode.scheduler import DecodeScheduler
from engine.context import WorkerContext
from engine.kv.allocation import Allocator
from engine.kv.block_pool import BlockPool
from protocol.ids import RandomIds
from protocol.messages.orders import Decode
from protocol.messages.peers import Announce, Attach, BlockOffer
from protocol.messages.records import PeerAddress
from protocol.sampling import SampledToken, SamplingParams

SOURCE = PeerAddress(worker_id="P", incarnation="p1", host="h", control="", transports={})
KEY = ("r", 1)


class Surroundings:
    """Outbox, fetcher, runner and clock of a role that is only told things."""

    def now_s(self) -> float:
        return 100.0

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.failed: list[object] = []
        self.fetched: list[tuple[int, int]] = []

    def ask(self, _: object, message: object) -> None:
        self.asked.append(message)

    def transfer_failed(self, message: object) -> None:
        self.failed.append(message)

    def output(self, *_: object) -> None: ...

    def fetch(self, *told: Any) -> None:
        self.fetched.append((told[3], len(told[4])))

    def cancel(self, *_: object) -> None: ...


def role_with_a_read(around: Surroundings | None = None) -> DecodeRole:
    """A role in the middle of a read for request r."""
    around = around or Surroundings()
    scheduler = DecodeScheduler(
        Allocator(BlockPool(8), 4), max_num_batched_tokens=16, max_num_seqs=4
    )
    context = WorkerContext("D", "d1", b"f", around, RandomIds())
    role = DecodeRole(scheduler, around, around, around, context)  # type: ignore[arg-type]
    role.decode(order())
    role.hear(("P", "p1"), announced(0, 1))
    assert role.fetches[KEY].pending == 1
    return role


def announced(first: int, num_blocks: int, *, last: bool = False) -> Announce:
    return Announce(
        incarnation="p1",
        request_id="r",
        attempt=1,
        lease_id="l",
        first_block=first,
        offers=[BlockOffer(block_id=i, generation=1, digest=b"") for i in range(num_blocks)],
        num_tokens=6 if last else 4 * num_blocks,
        last=last,
        first_token=SampledToken(token_id=9) if last else None,
    )


def test_after_long_silence_the_source_is_asked_for_what_comes_next() -> None:
    around = Surroundings()
    role = role_with_a_read(around)
    role.ask_again()
    first, again = around.asked
    assert isinstance(first, Attach)
    assert isinstance(again, Attach)
    assert (first.first_block, again.first_block) == (0, 1)


def test_what_is_announced_twice_is_read_once() -> None:
    around = Surroundings()
    role = role_with_a_read(around)
    role.hear(("P", "p1"), announced(0, 2, last=True))
    role.hear(("P", "p1"), announced(0, 2, last=True))
    assert around.fetched == [(0, 1), (1, 1)]
    role.pulled(KEY, None)
    role.pulled(KEY, None)
    assert role.fetches == {}
    assert around.failed == []


def test_a_source_that_has_said_everything_is_not_asked_again() -> None:
    around = Surroundings()
    role = role_with_a_read(around)
    role.hear(("P", "p1"), announced(1, 1, last=True))
    before = len(around.asked)
    role.ask_again()
    assert len(around.asked) == before


def test_an_announcement_that_leaves_blocks_out_gives_the_attempt_back() -> None:
    around = Surroundings()
    role = role_with_a_read(around)
    role.hear(("P", "p1"), announced(2, 1))
    assert len(around.failed) == 1


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

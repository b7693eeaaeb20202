"""What a worker says of its cached blocks, and that it keeps what it was told to."""

from __future__ import annotations

import pytest

from engine.kv import prefix_cache
from engine.kv.prefix_cache import PrefixCache
from kvtransfer.heard import FromSource
from kvtransfer.sharing.keeper import FOUND_WITHIN_S, MAX_AT_ONCE, MAX_WAITING
from protocol.errors import DigestMismatch
from protocol.messages.orders import Fence, Keep, ListBlocks, Welcome
from protocol.messages.peers import BlockOffer, Found, Lookup, Pulled
from protocol.messages.reports import BlocksChanged
from tests.unit.worker.lone_worker import SOURCE, LoneWorker, prefill_order
from worker import cache_news
from worker.cache_news import EVERY_S
from worker.loop import IDLE_S

LIST = ListBlocks(incarnation="w1")
WELCOME = Welcome(incarnation="w1")
KEYS = [bytes([n]) * 16 for n in range(6)]


def news(said: list[object]) -> list[BlocksChanged]:
    return [message for message in said if isinstance(message, BlocksChanged)]


def keep(*keys: bytes, first_block: int = 0) -> Keep:
    return Keep(
        incarnation="w1", source=SOURCE, first_block=first_block, parent=b"p", keys=list(keys)
    )


def found(lookup: Lookup, count: int) -> FromSource:
    offers = [BlockOffer(block_id=i, generation=1, digest=b"") for i in range(count)]
    message = Found(
        incarnation="p1",
        request_id=lookup.request_id,
        attempt=lookup.attempt,
        lease_id="l",
        first_block=lookup.first_block,
        offers=offers,
    )
    return FromSource(("P", "p1"), message)


def asked(worker: LoneWorker) -> Lookup:
    lookup = worker.asked[-1]
    assert isinstance(lookup, Lookup)
    return lookup


# ---- news


def test_nothing_is_said_before_it_is_asked() -> None:
    worker = LoneWorker()
    assert news(worker.turn(WELCOME, prefill_order())) == []


def test_asked_it_lists_all_and_then_says_what_changed() -> None:
    worker = LoneWorker()
    worker.turn(WELCOME, prefill_order())
    (listed,) = news(worker.turn(LIST))
    assert (listed.number, listed.is_anew, len(listed.stored)) == (1, True, 1)
    worker.turn(keep(KEYS[0]))
    worker.turn(found(asked(worker), 1))
    (changed,) = news(worker.turn(worker.ended(), after_s=EVERY_S))
    assert (changed.number, changed.is_anew, changed.stored) == (2, False, [KEYS[0]])


def test_asked_again_it_begins_anew_with_the_next_number() -> None:
    worker = LoneWorker()
    worker.turn(WELCOME, LIST)
    (again,) = news(worker.turn(LIST))
    assert (again.number, again.is_anew) == (2, True)


def test_fenced_it_is_silent_until_it_is_asked_as_the_new_start() -> None:
    worker = LoneWorker()
    worker.turn(WELCOME, LIST)
    worker.turn(Fence(incarnation="w1"))
    worker.turn(prefill_order(), after_s=IDLE_S)
    assert len(news(worker.said)) == 1


def test_a_long_list_comes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_news, "MOST_KEYS", 2)
    worker = LoneWorker()
    worker.turn(WELCOME, keep(*KEYS[:5]))
    worker.turn(found(asked(worker), 5))
    parts = news(worker.turn(worker.ended(), LIST))
    assert [(p.number, p.is_anew, len(p.stored)) for p in parts] == [
        (1, True, 2),
        (2, False, 2),
        (3, False, 1),
    ]


def test_changes_that_nobody_takes_are_bounded_and_known_to_be_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefix_cache, "MAX_CHANGES", 3)
    cache = PrefixCache()
    cache.changes.begin()
    for number, key in enumerate(KEYS):
        cache.store(number, key)
    assert cache.changes.is_lost
    assert cache.changes.take() == ([], [])


# ---- keeping


def test_kept_blocks_are_read_proven_and_cached_and_nothing_is_held() -> None:
    worker = LoneWorker()
    worker.turn(WELCOME, keep(*KEYS[:3], first_block=2))
    lookup = asked(worker)
    assert (lookup.first_block, lookup.keys) == (2, KEYS[:3])
    worker.turn(found(lookup, 2))
    assert worker.held == 2
    worker.turn(worker.ended())
    assert worker.roles.pool.cache.keys() == KEYS[:2]
    assert (worker.held, worker.roles.keeper.is_empty) == (0, True)
    assert isinstance(worker.asked[-1], Pulled)


def test_unproven_blocks_are_not_cached() -> None:
    worker = LoneWorker()
    worker.turn(WELCOME, keep(*KEYS[:2]))
    worker.turn(found(asked(worker), 2))
    worker.turn(worker.ended(DigestMismatch("a flipped bit")))
    assert worker.roles.pool.cache.keys() == []
    assert (worker.held, worker.roles.keeper.failed_runs) == (0, 1)


def test_what_is_here_is_not_read_again() -> None:
    worker = LoneWorker()
    worker.turn(WELCOME, keep(*KEYS[:2]))
    worker.turn(found(asked(worker), 2))
    worker.turn(worker.ended(), keep(*KEYS[:4]))
    assert (asked(worker).first_block, asked(worker).keys) == (2, KEYS[2:4])


def test_a_holder_that_does_not_answer_is_given_up() -> None:
    worker = LoneWorker()
    worker.turn(WELCOME, keep(*KEYS[:2]))
    worker.turn(after_s=FOUND_WITHIN_S + IDLE_S)
    assert worker.roles.keeper.is_empty
    assert isinstance(worker.asked[-1], Pulled)


def test_more_offers_than_asked_for_are_refused() -> None:
    worker = LoneWorker()
    worker.turn(WELCOME, keep(KEYS[0]))
    worker.turn(found(asked(worker), 2))
    assert (worker.jobs, worker.roles.keeper.failed_runs) == ([], 1)


def test_orders_beyond_the_bound_push_the_oldest_out() -> None:
    worker = LoneWorker()
    worker.turn(WELCOME, *(keep(bytes([n % 256, n // 256]) * 8) for n in range(MAX_WAITING + 9)))
    keeper = worker.roles.keeper
    assert keeper.num_waiting == MAX_WAITING + MAX_AT_ONCE
    assert keeper.dropped_blocks == 9 - MAX_AT_ONCE


def test_what_there_is_no_room_for_is_not_kept() -> None:
    worker = LoneWorker(num_blocks=2)
    worker.turn(WELCOME, keep(*KEYS[:3]))
    worker.turn(found(asked(worker), 3))
    assert worker.held == 2
    worker.turn(worker.ended())
    assert (worker.roles.pool.cache.keys(), worker.held) == (KEYS[:2], 0)

"""What stores are told to keep: the next blocks, from whoever has them, once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from coordinator.cluster import storing as module
from coordinator.cluster.registry import Registry
from coordinator.cluster.storing import Storing
from protocol.clock import ManualClock
from protocol.content_keys import extend_keys, root_key
from protocol.messages.orders import Keep, ListBlocks
from protocol.messages.reports import BlocksChanged
from protocol.roles import Role
from tests.model.surroundings import fingerprint
from tests.unit.coordinator.cluster.workers import BLOCK_SIZE, ready_worker

TOKENS = list(range(5 * BLOCK_SIZE))


def keys_of(tokens: list[int]) -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, root_key(fingerprint(BLOCK_SIZE).hash_bytes(), ""), tokens, BLOCK_SIZE)
    return keys


class Setting:
    """A prefill worker and stores, and what they are ordered."""

    def __init__(self, *store_ids: str) -> None:
        self.clock = ManualClock()
        self.registry = Registry()
        self.orders: list[tuple[str, Any]] = []
        outgoing = SimpleNamespace(
            send_order=lambda record, order: self.orders.append((record.worker_id, order))
        )
        self.storing = Storing(self.registry, outgoing, self.clock, BLOCK_SIZE)  # type: ignore[arg-type]
        self._numbers: dict[str, int] = {}
        self.join("p", Role.PREFILL)
        for store_id in store_ids:
            self.join(store_id, Role.STORE)

    def join(self, worker_id: str, role: Role) -> None:
        self.storing.joined(ready_worker(self.registry, worker_id, role, 512))

    def say(self, worker_id: str, stored: list[bytes], given_up: tuple[bytes, ...] = ()) -> None:
        record = self.registry.get(worker_id)
        assert record is not None
        number = self._numbers[worker_id] = self._numbers.get(worker_id, 0) + 1
        message = BlocksChanged(
            incarnation=worker_id,
            number=number,
            is_anew=number == 1,
            stored=stored,
            given_up=list(given_up),
        )
        self.storing.said(record, message)

    def grow(self, tokens: list[int], request_id: str = "r") -> None:
        self.storing.grew(
            SimpleNamespace(  # type: ignore[arg-type]
                is_tied=False,
                request_id=request_id,
                generation=SimpleNamespace(content_salt=""),
                num_tokens=len(tokens),
                token_ids=tokens,
            )
        )

    def keeps(self) -> list[tuple[str, Keep]]:
        """And forgets them."""
        kept = [(name, order) for name, order in self.orders if isinstance(order, Keep)]
        self.orders.clear()
        return kept


def test_with_the_first_store_all_are_asked_and_asked_again_until_they_tell() -> None:
    setting = Setting()
    assert setting.orders == []
    setting.join("s", Role.STORE)
    assert {name for name, order in setting.orders if isinstance(order, ListBlocks)} == {"p", "s"}
    setting.say("p", [])
    setting.orders.clear()
    setting.clock.advance(module.ASK_EVERY_S)
    setting.storing.tick()
    assert [name for name, order in setting.orders if isinstance(order, ListBlocks)] == ["s"]


def test_without_a_store_nothing_is_wanted() -> None:
    setting = Setting()
    setting.grow(TOKENS)
    setting.say("p", keys_of(TOKENS))
    setting.storing.tick()
    assert setting.keeps() == []
    assert setting.storing.view()["unkept_blocks"] == 0


def test_a_store_is_told_who_has_the_next_blocks_once() -> None:
    setting = Setting("s")
    keys = keys_of(TOKENS)
    setting.grow(TOKENS)
    setting.say("p", keys[:3])
    ((name, order),) = setting.keeps()
    assert (name, order.source.worker_id, order.first_block) == ("s", "p", 0)
    assert order.keys == keys[:3]
    setting.storing.tick()
    assert setting.keeps() == [], "it has not shown an effect"
    setting.say("s", keys[:3])
    setting.say("p", keys[3:])
    ((_, order),) = setting.keeps()
    assert (order.first_block, order.parent, order.keys) == (3, keys[2], keys[3:])
    setting.say("s", keys[3:])
    assert setting.storing.view()["unkept_blocks"] == 0


def test_an_order_without_effect_is_given_again() -> None:
    setting = Setting("s")
    setting.grow(TOKENS)
    setting.say("p", keys_of(TOKENS))
    first = setting.keeps()
    setting.clock.advance(module.ORDER_S + 0.1)
    setting.storing.tick()
    assert setting.keeps() == first


def test_an_order_that_the_store_gave_up_soon_leaves_its_place() -> None:
    setting = Setting("s")
    prompts = [[index] * BLOCK_SIZE for index in range(module.ORDERS_AT_ONCE + 1)]
    for index, tokens in enumerate(prompts):
        setting.grow(tokens, f"r{index}")
    setting.say("p", [key for tokens in prompts for key in keys_of(tokens)])
    first = setting.keeps()
    assert len(first) == module.ORDERS_AT_ONCE
    setting.say("s", [], tuple(order.keys[0] for _, order in first))
    setting.storing.tick()
    assert setting.keeps() == [], "whoever had it may say first that it is gone"
    record = setting.registry.get("p")
    assert record is not None
    gone = [order.keys[0] for _, order in first[1:]]
    message = BlocksChanged(incarnation="p", number=2, evicted=gone)
    setting.storing.said(record, message)
    setting.clock.advance(module.AGAIN_S + 0.01)
    setting.storing.tick()
    assert [order.keys for _, order in setting.keeps()] == [
        first[0][1].keys,
        keys_of(prompts[-1]),
    ]


def test_no_store_is_chosen_before_there_is_a_block_to_choose_it_by() -> None:
    setting = Setting("s1", "s2", "s3")
    keys = keys_of(TOKENS)
    for request_id, length in (("a", 1), ("b", BLOCK_SIZE), ("c", len(TOKENS))):
        setting.grow(TOKENS[:length], request_id)
        setting.storing.tick()
        setting.grow(TOKENS, request_id)
    setting.say("p", keys)
    homes = {name for name, _ in setting.keeps()}
    assert len(homes) == 1, "what begins alike meets in one store"


def test_a_store_that_left_is_replaced_and_told_all() -> None:
    setting = Setting("s1", "s2")
    keys = keys_of(TOKENS)
    setting.grow(TOKENS)
    setting.say("p", keys)
    ((home, _),) = setting.keeps()
    setting.say(home, keys)
    setting.registry.remove(home, "it died", 0.0)
    setting.storing.left(home)
    setting.storing.tick()
    ((other, order),) = setting.keeps()
    assert other != home
    assert order.keys == keys


def test_what_has_not_grown_for_long_is_given_up() -> None:
    setting = Setting("s")
    setting.grow(TOKENS)
    assert setting.storing.view()["unkept_blocks"] == 5
    setting.clock.advance(module.WANTED_S + 0.1)
    setting.storing.tick()
    assert setting.storing.view()["unkept_blocks"] == 0
    setting.say("p", keys_of(TOKENS))
    assert setting.keeps() == []


def test_of_many_wishes_the_oldest_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WANTED", 2)
    setting = Setting("s")
    first, others = TOKENS, [[7] * (2 * BLOCK_SIZE), [8] * (2 * BLOCK_SIZE)]
    for index, tokens in enumerate((first, *others)):
        setting.grow(tokens, f"r{index}")
    setting.say("p", keys_of(first) + keys_of(others[0]) + keys_of(others[1]))
    wanted = [order.keys for _, order in setting.keeps()]
    assert wanted == [keys_of(tokens) for tokens in others]


def test_a_store_has_few_orders_at_a_time() -> None:
    setting = Setting("s")
    prompts = [[index] * BLOCK_SIZE for index in range(2 * module.ORDERS_AT_ONCE)]
    for index, tokens in enumerate(prompts):
        setting.grow(tokens, f"r{index}")
    setting.say("p", [key for tokens in prompts for key in keys_of(tokens)])
    given = [order.keys for _, order in setting.keeps()]
    assert given == [keys_of(tokens) for tokens in prompts[: module.ORDERS_AT_ONCE]]

"""What workers say of their caches: what is noted, what a missing number means, and what is forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.cluster.block_index import BlockIndex, Tier
from protocol.messages.reports import BlocksChanged

A, B, C, D = (bytes([n]) * 16 for n in range(4))


def said(
    number: int,
    stored: list[bytes] | None = None,
    evicted: list[bytes] | None = None,
    *,
    is_anew: bool = False,
    start: str = "w1",
) -> BlocksChanged:
    return BlocksChanged(
        incarnation=start,
        number=number,
        is_anew=is_anew,
        stored=stored or [],
        evicted=evicted or [],
    )


def told(*keys: bytes, worker: str = "w", index: BlockIndex | None = None) -> BlockIndex:
    index = BlockIndex() if index is None else index
    index.said(worker, said(1, list(keys), is_anew=True))
    return index


def test_a_run_ends_at_the_first_block_that_is_missing() -> None:
    index = told(A, B, D)
    told(A, worker="v", index=index)
    assert index.runs([A, B, C, D]) == {"w": 2, "v": 1}
    assert index.run_at("w", [A, B, C, D]) == 2


def test_what_is_evicted_is_not_found() -> None:
    index = told(A, B)
    index.said("w", said(2, evicted=[A]))
    assert index.runs([A, B]) == {}
    assert len(index) == 1


def test_a_missing_number_makes_the_worker_unknown_until_it_lists_anew() -> None:
    index = told(A)
    index.said("w", said(3, [B]))
    assert not index.knows("w", "w1")
    assert (index.runs([A]), index.resyncs) == ({}, 1)
    index.said("w", said(4, [C]))
    assert index.runs([C]) == {}
    index.said("w", said(5, [D], is_anew=True))
    assert index.knows("w", "w1")
    assert index.runs([D]) == {"w": 1}


def test_a_repeated_number_changes_nothing() -> None:
    index = told(A)
    index.said("w", said(2, evicted=[A]))
    index.said("w", said(2, [A]))
    assert index.runs([A]) == {}
    assert index.knows("w", "w1")


def test_another_start_is_not_known() -> None:
    index = told(A)
    index.said("w", said(2, [B], start="w2"))
    assert index.runs([B]) == {}
    assert not index.knows("w", "w2")


def test_a_block_of_both_tiers_is_there_until_both_lose_it() -> None:
    index = told(A)
    both = BlocksChanged(incarnation="w1", number=2, disk_stored=[A])
    index.said("w", both)
    assert index.tier("w", A) == Tier.MEMORY | Tier.DISK
    index.said("w", said(3, evicted=[A]))
    assert index.tier("w", A) == Tier.DISK
    assert index.runs([A]) == {"w": 1}
    index.said("w", BlocksChanged(incarnation="w1", number=4, disk_evicted=[A]))
    assert len(index) == 0


def test_a_worker_that_left_has_nothing() -> None:
    index = told(A)
    told(A, worker="v", index=index)
    index.forget("w")
    assert index.runs([A]) == {"v": 1}
    assert index.blocks_of("w") == 0


KEYS = st.sampled_from([A, B, C, D])
CHANGES = st.lists(st.tuples(st.sampled_from("wv"), st.booleans(), KEYS), max_size=40)


@given(CHANGES)
def test_it_has_what_a_plain_set_of_each_worker_has(changes: list[tuple[str, bool, bytes]]) -> None:
    index, model = BlockIndex(), {"w": set[bytes](), "v": set[bytes]()}
    numbers = dict.fromkeys(model, 1)
    for name in model:
        told(worker=name, index=index)
    for name, is_stored, key in changes:
        numbers[name] += 1
        lists = ([key], None) if is_stored else (None, [key])
        index.said(name, said(numbers[name], *lists))
        (model[name].add if is_stored else model[name].discard)(key)
    for name, keys in model.items():
        assert index.blocks_of(name) == len(keys)
        assert all((index.tier(name, key) != 0) == (key in keys) for key in (A, B, C, D))
    assert len(index) == len(model["w"] | model["v"])

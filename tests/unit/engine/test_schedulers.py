"""Both schedulers over a real pool, with no engine behind them."""

from __future__ import annotations

from decode.scheduler import DecodeScheduler
from engine.kv.allocation import Allocator
from engine.kv.block_pool import BlockPool
from engine.kv.sequence import Scheduled, Sequence, SequenceStatus
from prefill.scheduler import PrefillScheduler
from protocol.content_keys import root_key
from protocol.sampling import SampledToken, SamplingParams

BLOCK_SIZE = 4


def sequence(pool: BlockPool, name: str, tokens: list[int], max_tokens: int = 100) -> Sequence:
    return Sequence(
        request_id=name,
        attempt=1,
        token_ids=list(tokens),
        num_prompt_tokens=len(tokens),
        sampling=SamplingParams(max_tokens=max_tokens),
        root=root_key(b"model"),
        hold=pool.empty_hold(f"seq:{name}"),
    )


def due(made: Sequence, due_s: float) -> Sequence:
    made.due_s = due_s
    return made


def prefiller(num_blocks: int = 64, budget: int = 8) -> PrefillScheduler:
    allocator = Allocator(BlockPool(num_blocks), BLOCK_SIZE)
    return PrefillScheduler(allocator, max_num_batched_tokens=budget, max_num_seqs=16)


def decoder(num_blocks: int = 64, budget: int = 8, seqs: int = 16) -> DecodeScheduler:
    allocator = Allocator(BlockPool(num_blocks), BLOCK_SIZE)
    return DecodeScheduler(allocator, max_num_batched_tokens=budget, max_num_seqs=seqs)


def shares(batch: list[Scheduled]) -> list[tuple[str, int, bool]]:
    return [(s.sequence.request_id, s.num_tokens, s.samples) for s in batch]


def decode_step(scheduler: DecodeScheduler) -> list[tuple[str, int, bool]]:
    batch = scheduler.schedule()
    seen = shares(batch)
    for done in scheduler.update(batch):
        done.append(SampledToken(token_id=7))
    return seen


def test_a_prompt_of_two_steps_is_computed_in_chunks_and_the_next_fills_the_budget() -> None:
    scheduler = prefiller()
    pool = scheduler.allocator.pool
    scheduler.add(sequence(pool, "first", list(range(13))))
    scheduler.add(sequence(pool, "short", list(range(100, 103))))
    seen = []
    for _ in range(2):
        batch = scheduler.schedule()
        seen.append(shares(batch))
        scheduler.update(batch)
    assert seen == [
        [("first", 8, False)],
        [("first", 5, True), ("short", 3, True)],
    ]
    assert not scheduler.has_work


def test_a_long_prompt_is_computed_in_pieces_that_stand_alone() -> None:
    scheduler = prefiller(budget=8)
    pool = scheduler.allocator.pool
    scheduler.add(due(sequence(pool, "long", list(range(32))), 50.0))
    scheduler.add(due(sequence(pool, "next", list(range(100, 103))), 60.0))
    seen = []
    while batch := scheduler.schedule():
        seen.append(shares(batch))
        scheduler.update(batch)
    assert seen[:4] == [[("long", 4, False)]] * 4
    assert all(len(step) == 1 for step in seen), (
        "the next one would delay its end, and is delayed by none"
    )
    assert [step[0][0] for step in seen] == ["long"] * (len(seen) - 1) + ["next"]


def test_what_is_due_first_goes_first_and_nothing_delays_its_end() -> None:
    scheduler = prefiller(budget=8)
    pool = scheduler.allocator.pool
    scheduler.add(due(sequence(pool, "long", list(range(40))), 50.0))
    scheduler.update(scheduler.schedule())
    for index in range(3):
        scheduler.add(
            due(sequence(pool, f"s{index}", list(range(100 + index, 103 + index))), 3 - index)
        )
    batch = scheduler.schedule()
    assert shares(batch) == [("s2", 3, True), ("s1", 3, True), ("s0", 2, False)]
    scheduler.update(batch)
    assert shares(scheduler.schedule()) == [("s0", 1, True)]


def test_a_long_prompt_goes_on_once_it_is_due() -> None:
    scheduler = prefiller(budget=8)
    pool = scheduler.allocator.pool
    scheduler.add(due(sequence(pool, "long", list(range(40))), 5.0))
    scheduler.add(due(sequence(pool, "later", list(range(100, 103))), 6.0))
    assert shares(scheduler.schedule()) == [("long", 4, False)]


def test_a_prompt_that_computes_here_goes_by_when_it_is_due_too() -> None:
    scheduler = decoder(budget=8)
    pool = scheduler.allocator.pool
    scheduler.add(due(sequence(pool, "long", list(range(40))), 50.0), remote=False)
    assert decode_step(scheduler) == [("long", 4, False)]
    scheduler.add(due(sequence(pool, "short", list(range(100, 105))), 1.0), remote=False)
    assert decode_step(scheduler) == [("short", 5, True)]
    assert decode_step(scheduler) == [("short", 1, True), ("long", 4, False)]


def test_the_end_of_a_prompt_is_computed_apart_so_that_little_is_read_after_it() -> None:
    scheduler = prefiller(budget=32)
    pool = scheduler.allocator.pool
    scheduler.add(sequence(pool, "long", list(range(30))))
    scheduler.add(sequence(pool, "next", list(range(100, 110))))
    seen = []
    while batch := scheduler.schedule():
        seen.append(shares(batch))
        scheduler.update(batch)
    assert seen == [[("long", 24, False)], [("long", 6, True)], [("next", 10, True)]]


def test_prefix_hit_computes_only_the_rest_and_always_one_token() -> None:
    scheduler = prefiller()
    pool = scheduler.allocator.pool
    first = sequence(pool, "first", list(range(8)))
    scheduler.add(first)
    while scheduler.has_work:
        scheduler.update(scheduler.schedule())
    first.hold.release()
    same, longer = sequence(pool, "same", list(range(8))), sequence(pool, "longer", [*range(8), 9])
    scheduler.add(same)
    scheduler.add(longer)
    assert shares(scheduler.schedule()) == [("same", 4, True), ("longer", 1, True)]
    assert (same.num_cached_tokens, longer.num_cached_tokens) == (4, 8)


def test_prompt_waits_until_its_blocks_are_free() -> None:
    scheduler = prefiller(num_blocks=3, budget=100)
    pool = scheduler.allocator.pool
    big, small = sequence(pool, "big", list(range(9))), sequence(pool, "small", [500])
    scheduler.add(big)
    scheduler.add(small)
    assert shares(scheduler.schedule()) == [("big", 9, True)]
    scheduler.remove(big.key)
    big.hold.release()
    assert shares(scheduler.schedule()) == [("small", 1, True)]


def test_decode_step_advances_every_sequence_before_local_prompts() -> None:
    scheduler = decoder(budget=6)
    pool = scheduler.allocator.pool
    scheduler.add(sequence(pool, "a", [1, 2]), remote=False)
    scheduler.add(sequence(pool, "b", list(range(10, 20))), remote=False)
    assert decode_step(scheduler) == [("a", 2, True), ("b", 4, False)]
    assert decode_step(scheduler) == [("a", 1, True), ("b", 5, False)]
    assert decode_step(scheduler) == [("a", 1, True), ("b", 1, True)]


def test_remote_sequence_runs_only_after_its_blocks_are_proven() -> None:
    scheduler = decoder()
    remote = sequence(scheduler.allocator.pool, "r", list(range(8)))
    scheduler.add(remote, remote=True)
    assert scheduler.schedule() == []
    assert scheduler.admit_remote() == [remote]
    assert remote.status is SequenceStatus.WAITING_FOR_REMOTE_KVS
    assert len(remote.block_table) == 3  # 8 prompt tokens and the one to be decoded
    assert scheduler.schedule() == []
    remote.append(SampledToken(token_id=5))
    scheduler.ready(remote)
    assert decode_step(scheduler) == [("r", 1, True)]


def test_youngest_is_preempted_and_comes_back_with_all_its_tokens() -> None:
    scheduler = decoder(num_blocks=5, budget=100)
    pool = scheduler.allocator.pool
    old, young = (
        sequence(pool, "old", list(range(6))),
        sequence(pool, "young", [20, 21, 22, 23, 24]),
    )
    scheduler.add(old, remote=False)
    scheduler.add(young, remote=False)
    for _ in range(8):
        decode_step(scheduler)
        assert pool.is_balanced()
    assert scheduler.num_preemptions >= 1
    assert young.status is SequenceStatus.PREEMPTED
    tokens_before = list(young.token_ids)
    scheduler.remove(old.key)
    old.hold.release()
    (back,) = scheduler.schedule()
    assert back.sequence is young
    assert back.samples
    assert young.token_ids == tokens_before


def test_nothing_new_is_fetched_while_a_preempted_sequence_waits() -> None:
    scheduler = decoder(num_blocks=4, budget=100)
    pool = scheduler.allocator.pool
    for name in ("old", "young"):
        scheduler.add(sequence(pool, name, [ord(name[0])] * 6), remote=False)
    while not scheduler.num_preemptions:
        decode_step(scheduler)
    scheduler.add(sequence(pool, "new", [1]), remote=True)
    assert scheduler.admit_remote() == []


def test_sequence_limit_counts_running_and_fetching() -> None:
    scheduler = decoder(seqs=2)
    pool = scheduler.allocator.pool
    for index in range(3):
        scheduler.add(sequence(pool, str(index), [index]), remote=True)
    assert [s.request_id for s in scheduler.admit_remote()] == ["0", "1"]


def test_limited_prompts_share_one_piece_a_step_beside_the_answers() -> None:
    scheduler = decoder(budget=32)
    pool = scheduler.allocator.pool
    scheduler.add(sequence(pool, "answer", [1, 2, 3]), remote=False)
    decode_step(scheduler)
    for start, name in ((100, "first"), (200, "second")):
        limited = sequence(pool, name, list(range(start, start + 10)))
        limited.chunk_tokens = 4
        scheduler.add(limited, remote=False)
    seen = [decode_step(scheduler) for _ in range(3)]
    assert seen[0] == [("answer", 1, True), ("first", 4, False)]
    assert seen[1] == [("answer", 1, True), ("first", 4, False)]
    assert seen[2] == [("answer", 1, True), ("first", 2, True), ("second", 2, False)]


def test_limit_ends_with_the_prompt() -> None:
    scheduler = decoder()
    limited = sequence(scheduler.allocator.pool, "a", list(range(5)))
    limited.chunk_tokens = 4
    scheduler.add(limited, remote=False)
    seen = [decode_step(scheduler) for _ in range(4)]
    assert seen == [[("a", 4, False)], [("a", 1, True)], [("a", 1, True)], [("a", 1, True)]]

"""From what workers said of their blocks to the runs that a reader is sent for."""

from __future__ import annotations

from types import SimpleNamespace

from coordinator.cluster.block_index import BlockIndex
from coordinator.cluster.registry import Registry
from coordinator.cluster.source_planner import Source, SourcePlanner
from coordinator.planning.prompt_cost import PromptCost
from coordinator.planning.read_costs import DOUBTED_SHARE, RETRY_S
from protocol.clock import ManualClock
from protocol.messages.reports import BlocksChanged, PrefixRead
from protocol.roles import Role
from tests.unit.coordinator.cluster.workers import BLOCK_SIZE, ready_worker

KEYS = [bytes([number]) for number in range(8)]
NUM_TOKENS = len(KEYS) * BLOCK_SIZE + 1


class Setting:
    """A prefill worker `own`, another one, and a store."""

    def __init__(self, cost: PromptCost | None = None) -> None:
        self.clock = ManualClock()
        self.index = BlockIndex()
        registry = Registry()
        self.lenders = [
            ready_worker(registry, "own", Role.PREFILL, 64),
            ready_worker(registry, "other", Role.DECODE, 64),
            ready_worker(registry, "store", Role.STORE, 64),
        ]
        storing = SimpleNamespace(index=self.index)
        self.planner = SourcePlanner(storing, lambda: cost, self.clock, BLOCK_SIZE)  # type: ignore[arg-type]

    def has(self, worker: str, memory: range, disk: range = range(0)) -> None:
        message = BlocksChanged(
            incarnation=worker,
            number=1,
            is_anew=True,
            stored=[KEYS[i] for i in memory],
            disk_stored=[KEYS[i] for i in disk],
        )
        self.index.said(worker, message)

    def plan(self, keys: list[bytes] = KEYS, num_tokens: int = NUM_TOKENS) -> tuple[Source, ...]:
        return self.planner.plan(keys, num_tokens, "own", self.lenders)

    def blocks(self) -> list[tuple[str, int, int]]:
        return [
            (s.worker.worker_id, s.begin // BLOCK_SIZE, s.end // BLOCK_SIZE) for s in self.plan()
        ]

    def slow(self, source: str, *, from_disk: bool) -> None:
        read = PrefixRead(
            source=source,
            asked_blocks=8,
            read_blocks=8,
            loaded_blocks=8 * from_disk,
            seconds=100.0,
        )
        self.planner.told(read, from_store=True)


def test_what_is_here_is_not_read() -> None:
    setting = Setting()
    setting.has("own", range(3))
    setting.has("store", range(8))
    assert setting.blocks() == [("store", 3, 8)]


def test_a_run_that_continues_elsewhere_is_read_there() -> None:
    setting = Setting()
    setting.has("other", range(5))
    setting.has("store", range(5, 8))
    assert setting.blocks() == [("other", 0, 5), ("store", 5, 8)]


def test_a_block_that_nobody_has_lies_between_two_runs() -> None:
    setting = Setting()
    setting.has("other", range(2))
    setting.has("store", range(3, 8))
    assert setting.blocks() == [("other", 0, 2), ("store", 3, 8)]


def test_a_disk_that_is_slower_than_computing_is_not_read() -> None:
    setting = Setting()
    setting.slow("store", from_disk=True)
    setting.has("store", range(4), disk=range(8))
    (source,) = setting.plan()
    assert (source.end, source.is_open) == (4 * BLOCK_SIZE, False)


def test_the_slow_source_is_passed_over_for_another_worker() -> None:
    setting = Setting()
    setting.slow("store", from_disk=False)
    setting.has("store", range(8))
    setting.has("other", range(8))
    assert setting.blocks() == [("other", 0, 8)]


def test_a_source_may_have_more_by_now_than_it_said() -> None:
    setting = Setting()
    setting.has("store", range(4))
    (source,) = setting.plan()
    assert source.is_open


def test_last_token_is_computed() -> None:
    setting = Setting()
    setting.has("store", range(8))
    (source,) = setting.plan(num_tokens=len(KEYS) * BLOCK_SIZE)
    assert source.end == 7 * BLOCK_SIZE


def test_reader_learns_what_computing_would_take_once_that_is_known() -> None:
    unknown, known = Setting(), Setting(PromptCost(0.25))
    for setting in (unknown, known):
        setting.has("store", range(4))
    assert unknown.plan()[0].worth_s == 0
    assert known.plan()[0].worth_s == 0.25 * 4 * BLOCK_SIZE


def test_a_disk_that_gave_nothing_in_time_costs_the_next_ones_little() -> None:
    """The first prompt waits as long as computing takes, the next are computed, and who tries again waits briefly."""
    setting = Setting(PromptCost(0.25))
    setting.has("store", range(0), disk=range(8))
    (first,) = setting.plan()
    setting.planner.told(
        PrefixRead(
            source="store",
            asked_blocks=8,
            read_blocks=0,
            loaded_blocks=0,
            seconds=first.worth_s,
        ),
        from_store=True,
    )
    assert setting.plan() == ()
    setting.clock.advance(2 * RETRY_S + 1)
    (again,) = setting.plan()
    assert again.worth_s == DOUBTED_SHARE * first.worth_s


def test_prompt_without_a_full_block_is_computed() -> None:
    assert Setting().plan([], 1) == ()

"""Admission and routing in seconds: what prompts cost, where time is left, and who is told to come back."""

from __future__ import annotations

import math

import pytest

from coordinator.cluster.books import Books
from coordinator.cluster.dispatch import LineBounds, WaitingLine
from coordinator.cluster.ledger import Ledger
from coordinator.cluster.lifecycle import RequestLife
from coordinator.cluster.pools import Pools
from coordinator.cluster.registry import Registry
from coordinator.cluster.router import PrefixMemory, Route, Router, stride_tokens
from coordinator.cluster.service_api import Generation
from coordinator.planning.demand import DemandBook
from coordinator.planning.prompt_cost import PromptCost, PromptWork
from coordinator.planning.throughput import level
from protocol.clock import ManualClock
from protocol.errors import Overloaded
from protocol.roles import Role
from protocol.sampling import SamplingParams
from tests.unit.coordinator.cluster.workers import ready_worker

BLOCK, STEP_TOKENS = 16, 512
CURVE = PromptCost(1e-3, 1e-6)
"""1.5 s for 1,000 tokens, 60 s for 10,000."""


class Scene:
    """Some ready workers, a curve that is known, and a line before them."""

    def __init__(self, prefill: int = 2, decode: int = 2, *, bound_s: float = 10.0) -> None:
        self.clock = ManualClock()
        ledger = Ledger(BLOCK)
        self.books = Books(Registry(), Pools({Role.PREFILL: prefill, Role.DECODE: decode}), ledger)
        self.demand = DemandBook()
        for length in (*range(100, 2000, 100), 10_000):
            self.demand.prompt_cost.add(length, 0, CURVE.seconds(length))
        for role, count in ((Role.PREFILL, prefill), (Role.DECODE, decode)):
            for index in range(count):
                record = ready_worker(self.books.registry, f"{role}-{index}", role, STEP_TOKENS)
                ledger.open(record.worker_id, record.hello.num_blocks, record.hello.max_num_seqs)
        prefixes = PrefixMemory(stride_tokens(BLOCK))
        self.router = Router(ledger, prefixes, self.demand.prompt_cost.work, relieves=False)
        bounds = LineBounds(1000, bound_s)
        self.line = WaitingLine(self.books, self.router, self.demand, self.clock, bounds)

    def life(self, name: str, length: int, deadline_s: float = 600.0) -> RequestLife:
        prompt = [hash(name) % 1000 + 1] * length
        sampling = SamplingParams(max_tokens=8, temperature=0.0)
        return RequestLife(Generation(name, prompt, sampling), 0.0, deadline_s)

    def route(self, life: RequestLife, due_s: float = math.inf) -> Route | None:
        return self.router.choose(self.books.registry, life.token_ids, 8, "", 0.0, due_s)

    def queue(self, worker_id: str, length: int, due_s: float = 0.0) -> None:
        work = self.demand.prompt_cost.work().tokens(length)
        name = f"{worker_id}-{self.books.ledger.queued_before(worker_id, math.inf).prompts}"
        self.books.ledger.reserve_prefill(worker_id, name, length)
        self.books.ledger.reserve_computing(worker_id, name, work, due_s)


@pytest.mark.parametrize(
    ("queues", "more", "height"),
    [
        ([0, 0, 100], 0, 0),
        ([10, 0, 100], 5, 5),
        ([10, 0, 100], 30, 20),
        ([5, 5], 10, 10),
        ([3], 4, 7),
        ([1, 2, 3], 6, 4),
    ],
)
def test_work_flows_to_the_lowest_queue(queues: list[float], more: float, height: float) -> None:
    assert level(queues, more) == height


def test_one_long_prompt_weighs_more_than_many_short_ones() -> None:
    scene = Scene()
    scene.queue("prefill-0", 9000)
    for _ in range(20):
        scene.queue("prefill-1", 450)
    route = scene.route(scene.life("next", 1000))
    assert route is None, "both have enough to do"
    ledger = scene.books.ledger
    heavy, light = (ledger.queued_prefill_tokens(f"prefill-{i}") for i in (0, 1))
    assert heavy > 3 * light, "though both hold 9,000 tokens"


def test_a_prompt_waits_in_the_line_while_every_worker_has_enough() -> None:
    scene = Scene(prefill=1)
    scene.queue("prefill-0", 2000)
    route = scene.route(scene.life("a", 1000))
    assert route is not None, "one prompt is not enough, however long"
    scene.queue("prefill-0", 2000)
    assert scene.route(scene.life("b", 1000)) is None
    scene.books.ledger.prefill_computed("prefill-0", "prefill-0-0")
    assert scene.route(scene.life("b", 1000)) is not None


def test_short_prompts_share_a_step() -> None:
    scene = Scene(prefill=1)
    for _ in range(5):
        scene.queue("prefill-0", 100)
    assert scene.route(scene.life("sixth", 100)) is not None


def test_cached_tokens_cost_nothing() -> None:
    scene = Scene(prefill=1)
    life = scene.life("known", 4096)
    cold = scene.router.expected_work(life.token_ids, "")
    scene.router.prefixes.remember(life.token_ids, "", ["decode-0"])
    warm = scene.router.expected_work(life.token_ids, "")
    assert warm < 0.05 * cold
    route = scene.route(life)
    assert route is not None
    assert route.work_tokens < 0.5 * cold


def test_the_last_token_of_a_prompt_is_work_though_all_of_it_is_cached() -> None:
    """So a route without work is one that nobody estimated."""
    scene = Scene(prefill=1)
    life = scene.life("known", 4096)
    cold = scene.router.expected_work(life.token_ids, "")
    scene.router.prefixes.remember(life.token_ids, "", ["prefill-0"])
    route = scene.route(life)
    assert route is not None
    assert 0 < route.work_tokens < 0.01 * cold
    assert scene.router.expected_work(life.token_ids, "") == route.work_tokens


def test_a_request_that_would_be_late_is_told_how_late() -> None:
    scene = Scene(prefill=1, bound_s=10.0)
    scene.queue("prefill-0", 5000)  # 17.5 s
    with pytest.raises(Overloaded) as refused:
        scene.line.check_room([scene.life("short", 1000)])  # 1.5 s of its own: may wait 8.5 s
    assert refused.value.retry_after_s == pytest.approx(9.0, abs=1.0)


def test_a_free_worker_beside_a_busy_one_is_time() -> None:
    scene = Scene(prefill=2, bound_s=10.0)
    scene.queue("prefill-0", 9000)
    scene.line.check_room([scene.life("short", 1000)])


def test_the_line_is_part_of_the_wait() -> None:
    scene = Scene(prefill=1, bound_s=10.0)
    for index in range(20):
        life = scene.life(f"waits-{index}", 1000)
        try:
            scene.line.check_room([life])
        except Overloaded:
            break
        scene.line.add(life)
    assert len(scene.line) == 6, "six of 1.5 s leave no time for a seventh within 8.5 s"


def test_a_requests_own_deadline_is_a_bound() -> None:
    scene = Scene(prefill=1, bound_s=60.0)
    scene.queue("prefill-0", 5000)
    scene.line.check_room([scene.life("patient", 1000)])
    with pytest.raises(Overloaded):
        scene.line.check_room([scene.life("hurried", 1000, deadline_s=5.0)])


def test_what_takes_long_alone_may_start_when_nobody_is_before_it() -> None:
    scene = Scene(prefill=1, bound_s=10.0)
    scene.line.check_room([scene.life("long", 10_000)])
    scene.queue("prefill-0", 1200)  # 1.9 s: within a quarter of the bound
    scene.line.check_room([scene.life("long", 10_000)])
    scene.queue("prefill-0", 1200)
    with pytest.raises(Overloaded):
        scene.line.check_room([scene.life("long", 10_000)])


def test_a_token_is_a_token_while_nothing_is_known() -> None:
    assert PromptWork().tokens(1000, 400) == 600
    assert PromptWork().tokens(10, 10) == 0


def test_a_short_prompt_is_sent_to_a_worker_that_is_full_of_long_ones() -> None:
    scene = Scene(prefill=1)
    for _ in range(3):
        scene.queue("prefill-0", 9000, due_s=200.0)
    assert scene.route(scene.life("short", 100), due_s=1.0) is not None
    assert scene.route(scene.life("long", 9000), due_s=300.0) is None


def test_a_short_prompt_is_let_in_while_long_ones_wait() -> None:
    scene = Scene(prefill=1, bound_s=10.0)
    for index in range(3):
        scene.queue("prefill-0", 9000, due_s=100.0 + index)
    scene.line.check_room([scene.life("short", 1000)])
    with pytest.raises(Overloaded):
        scene.line.check_room([scene.life("long", 9000)])


def test_of_two_workers_the_one_without_a_long_prompt_is_taken() -> None:
    scene = Scene(prefill=2)
    scene.queue("prefill-0", 9000, due_s=200.0)
    route = scene.route(scene.life("short", 100), due_s=1.0)
    assert route is not None
    assert route.prefill is not None
    assert route.prefill.worker_id == "prefill-1"


def test_where_nobody_prefills_prompts_wait_in_the_line_too() -> None:
    scene = Scene(prefill=0, decode=2)
    for worker in ("decode-0", "decode-1"):
        for index in range(2):
            scene.books.ledger.reserve_computing(worker, f"{worker}-{index}", 600, 0.0)
    assert scene.route(scene.life("next", 100)) is None
    scene.books.ledger.prefill_computed("decode-1", "decode-1-0")
    route = scene.route(scene.life("next", 100))
    assert route is not None
    assert route.decode.worker_id == "decode-1"

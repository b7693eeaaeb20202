"""Threads on lent cores: they change when a step ends and nothing else, wherever they stop."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from engine.cpu.lending import BUSY, IDLE, LINE_WORDS, LentCores, Team
from tests.patience import until
from tests.unit.engine.cpu.driving import PackedMatrix, kernels_for
from tests.unit.engine.cpu.processors import runnable_targets

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGETS = [
    pytest.param(name, marks=() if name == "native" else pytest.mark.deep)
    for name in sorted(runnable_targets(), key=lambda name: name != "native")
]
CORE = min(os.sched_getaffinity(0))
DEADLINE_S = 60.0
ROWS = 261
"""An operation takes long enough that a thread of Python gets its part."""


class Lender:
    """Words of one core, and a test's thread in the place of the thread that runs there."""

    def __init__(self, directory: Path, kernels: Any) -> None:
        self.kernels = kernels
        self.cores = LentCores(directory / "cores", (), (CORE,))
        self.team = Team(kernels, self.cores)
        assert self.team.pointer is not None
        self.claimed = 0

    def say(self, word: int) -> None:
        self.cores.words[CORE * LINE_WORDS] = word

    def claim(self) -> tuple[int, int]:
        """First item and how many; what a thread on a lent core does first."""
        low = ctypes.c_int64()
        count = self.kernels.claim_items(self.team.pointer, 0, ctypes.byref(low))
        self.claimed += count
        return low.value, count

    def finish(self, low: int, count: int) -> None:
        self.kernels.finish_items(self.team.pointer, 0, low, count)

    @contextmanager
    def helping(self, *, until: int | None = None) -> Iterator[threading.Thread]:
        """A thread that helps for as long as the body runs; with `until`, it claims so many times and never
        finishes the last."""
        over = threading.Event()

        def help_out() -> None:
            left = until
            while not over.is_set() and left != 0:
                low, count = self.claim()
                if count and left is not None:
                    left -= 1
                if count and left != 0:
                    self.finish(low, count)
                elif count:
                    self.held = (low, count)

        self.say(os.getpid() + IDLE)  # lent to us: the real thread stays parked
        thread = threading.Thread(target=help_out)
        thread.start()
        try:
            yield thread
        finally:
            over.set()
            thread.join(DEADLINE_S)


@pytest.fixture
def lender_of(tmp_path: Path) -> Iterator[Any]:
    made: list[Lender] = []

    def make(dtype: torch.dtype = torch.bfloat16, target: str = "native") -> Lender:
        made.append(Lender(tmp_path, kernels_for(dtype, target)))
        return made[-1]

    yield make
    for lender in made:
        lender.team.close()


def multiplier(lender: Lender, dtype: torch.dtype, *, gated: bool = False) -> PackedMatrix:
    """Outputs that leave a panel half full where that is possible."""
    torch.manual_seed(3)
    weight = torch.randn(4096 if gated else 2064, 192).to(dtype)
    multiply = PackedMatrix(lender.kernels, weight, None, gated=gated)
    multiply.lend(lender.team)
    return multiply


def until_claimed(lender: Lender, act: Any) -> None:
    """Act until the thread has had a part in it."""
    deadline_s = time.monotonic() + DEADLINE_S
    before = lender.claimed
    while lender.claimed == before:
        assert time.monotonic() < deadline_s, "the thread never got an item"
        act()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["plain", "gated", "added"])
def test_what_others_computed_has_the_same_bits(
    lender_of: Any, kind: str, target: str, dtype: torch.dtype
) -> None:
    lender = lender_of(dtype, target)
    multiply = multiplier(lender, dtype, gated=kind == "gated")
    x = torch.randn(ROWS, 192).to(dtype)
    added = torch.randn(ROWS, 2064).to(dtype) if kind == "added" else None
    alone = multiply(x, added)
    with lender.helping():
        until_claimed(lender, lambda: check_equal(multiply(x, added), alone))


def check_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.equal(found.view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("claims", [1, 2, 5])
def test_nobody_waits_for_a_thread_that_stopped(lender_of: Any, claims: int) -> None:
    lender = lender_of()
    multiply = multiplier(lender, torch.bfloat16)
    x = torch.randn(ROWS, 192).bfloat16()
    alone = multiply(x)
    with lender.helping(until=claims) as thread:
        deadline_s = time.monotonic() + DEADLINE_S
        while thread.is_alive():
            assert time.monotonic() < deadline_s
            check_equal(multiply(x), alone)
        check_equal(multiply(x), alone)


def test_a_thread_that_comes_back_late_disturbs_nothing(lender_of: Any) -> None:
    lender = lender_of()
    multiply = multiplier(lender, torch.bfloat16)
    x, other = torch.randn(2, ROWS, 192).bfloat16()
    alone = [multiply(x), multiply(other)]
    with lender.helping(until=1) as thread:
        deadline_s = time.monotonic() + DEADLINE_S
        while thread.is_alive():
            assert time.monotonic() < deadline_s
            check_equal(multiply(x), alone[0])
    lender.team.keep(x)
    assert lender.team.is_read, "what it still reads was let go"
    check_equal(multiply(other), alone[1])
    assert lender.claim()[1] == 0, "offered an operation while one was not back"
    results = multiply(other)
    lender.finish(*lender.held)
    check_equal(results, alone[1])
    lender.team.keep(x)
    assert not lender.team.is_read
    with lender.helping():
        until_claimed(lender, lambda: check_equal(multiply(other), alone[1]))


def own_threads() -> set[int]:
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


def test_a_lent_thread_is_pinned_and_yields_to_everybody(tmp_path: Path) -> None:
    before = own_threads()
    team = Team(kernels_for(torch.bfloat16), LentCores(tmp_path / "cores", (), (CORE,)))
    (thread,) = own_threads() - before
    assert os.sched_getscheduler(thread) == os.SCHED_IDLE
    assert os.sched_getaffinity(thread) == {CORE}
    team.close()
    assert thread not in own_threads()


def worked_ns(thread: int) -> int:
    return int(Path(f"/proc/self/task/{thread}/schedstat").read_text(encoding="ascii").split()[0])


def has_settled(thread: int) -> bool:
    """Whether it has begun, and waits for work by now."""
    state = Path(f"/proc/self/task/{thread}/stat").read_text(encoding="ascii").rpartition(")")[2]
    return worked_ns(thread) > 0 and state.split()[0] == "S"


def test_a_core_is_used_only_while_its_owner_sleeps(tmp_path: Path) -> None:
    before = own_threads()
    kernels = kernels_for(torch.bfloat16)
    owner = LentCores(tmp_path / "cores", (CORE,), ())
    team = Team(kernels, LentCores(tmp_path / "cores", (), (CORE,)))
    (thread,) = own_threads() - before
    os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))  # others are busy here, too
    multiply = PackedMatrix(kernels, torch.randn(2064, 192).bfloat16(), None)
    multiply.lend(team)
    x = torch.randn(ROWS, 192).bfloat16()
    until(lambda: has_settled(thread), "a helper that waits")
    idle_ns = worked_ns(thread)
    for _ in range(20):
        multiply(x)
    assert worked_ns(thread) == idle_ns
    deadline_s = time.monotonic() + DEADLINE_S
    with owner.lent():
        while worked_ns(thread) == idle_ns:
            assert time.monotonic() < deadline_s, "a core that was lent was not used"
            multiply(x)
    assert owner.words[CORE * LINE_WORDS] == BUSY
    team.close()


def test_without_cores_there_is_no_team() -> None:
    team = Team(kernels_for(torch.bfloat16), None)
    assert (team.pointer, team.size, team.is_read) == (None, 0, False)
    team.close()

"""Processes that have loaded everything: how many there are, who gets one, and what happens to those that end."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from deploy.launch.local.standby import Standbys
from deploy.processes.standby import keep_to
from protocol.clock import ManualClock
from protocol.roles import Role
from protocol.specs import WorkerSpec
from tests.sim.launcher import MODEL

DECODE = WorkerSpec(
    worker_id="decode-0", role=Role.DECODE, model=MODEL, control="ipc://c", run_directory="/r"
)


class Process:
    """Stands for a child: it reads whom to be."""

    def __init__(self, orders_fd: int, on_exit: Callable[[int], None]) -> None:
        self.orders, self.on_exit = os.fdopen(os.dup(orders_fd), "rb", buffering=0), on_exit

    def told(self) -> str:
        return self.orders.read(4096).decode()

    def ends(self) -> None:
        self.orders.close()


class Nursery:
    """Begins what it is asked for, unless the system has no room, and keeps what is due later."""

    def __init__(self) -> None:
        self.begun: list[Process] = []
        self.launchers: list[Standbys] = []
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.is_full = False

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        self.due.append((delay_s, action))

    def begin(
        self, template: WorkerSpec, orders_fd: int, on_exit: Callable[[int], None]
    ) -> Process:
        if self.is_full:
            raise OSError("no descriptors")
        self.begun.append(Process(orders_fd, on_exit))
        return self.begun[-1]

    def pass_time(self) -> list[float]:
        due, self.due = self.due, []
        for _, action in due:
            action()
        return [delay_s for delay_s, _ in due]


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    for launcher in made.launchers:
        launcher.close()
    for process in made.begun:
        process.ends()


def standbys(nursery: Nursery, count: int = 1) -> Standbys:
    made = Standbys(count, nursery, ManualClock())  # type: ignore[arg-type]
    nursery.launchers.append(made)
    made.fill([DECODE])
    return made


def test_there_are_as_many_as_there_should_be_and_none_before_they_are_asked_for(
    nursery: Nursery,
) -> None:
    Standbys(2, nursery, ManualClock())  # type: ignore[arg-type]
    assert not nursery.begun
    waiting = standbys(nursery, 2)
    waiting.fill([DECODE])
    assert len(nursery.begun) == len(waiting.processes) == 2


def test_one_is_told_whom_to_be_and_another_begins_later(nursery: Nursery, tmp_path: Path) -> None:
    waiting = standbys(nursery)
    spec = msgspec.structs.replace(
        DECODE, worker_id="prefill-7", role=Role.PREFILL, cores=(1,), num_blocks=9
    )
    taken = waiting.take(spec, tmp_path / "prefill-7.json")
    assert id(taken) == id(nursery.begun[0])
    assert nursery.begun[0].told() == f"{tmp_path}/prefill-7.json\n"
    assert nursery.begun[0].told() == "", "the pipe ends behind it"
    assert waiting.take(spec, tmp_path) is None
    assert nursery.pass_time() == [5.0]
    assert len(waiting.processes) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"num_threads": 2},
        {"visible_devices": "GPU-1"},
        {"backend": "torch"},
        {"weights_fd": 9},
        {"block_size": 32},
        {"role": Role.STORE},
    ],
)
def test_who_needs_another_process_gets_none(
    nursery: Nursery, other: dict[str, object], tmp_path: Path
) -> None:
    waiting = standbys(nursery)
    assert waiting.take(msgspec.structs.replace(DECODE, **other), tmp_path) is None
    assert len(waiting.processes) == 1


def test_every_model_has_its_own(nursery: Nursery, tmp_path: Path) -> None:
    other = msgspec.structs.replace(
        DECODE, worker_id="decode-1", model=msgspec.structs.replace(MODEL, name="b")
    )
    waiting = standbys(nursery)
    waiting.fill([DECODE, other])
    assert len(nursery.begun) == 2
    assert id(waiting.take(other, tmp_path)) == id(nursery.begun[1])
    nursery.pass_time()
    assert len(waiting.processes) == 2


def test_one_that_ended_unseen_is_passed_over(nursery: Nursery, tmp_path: Path) -> None:
    waiting = standbys(nursery, 2)
    nursery.begun[0].ends()
    assert id(waiting.take(DECODE, tmp_path)) == id(nursery.begun[1])
    nursery.begun[0].on_exit(1)
    nursery.pass_time()
    assert len(waiting.processes) == 2, "and no more than that"


def test_what_ends_again_and_again_is_begun_ever_more_rarely(nursery: Nursery) -> None:
    waiting = standbys(nursery)
    delays = []
    for _ in range(4):
        nursery.begun[-1].on_exit(2)
        assert not waiting.processes
        delays += nursery.pass_time()
    assert delays == [0.2, 1.0, 2.0, 4.0]


def test_what_the_system_cannot_start_is_tried_again(nursery: Nursery) -> None:
    nursery.is_full = True
    waiting = standbys(nursery, 3)
    assert len(nursery.due) == 1
    nursery.is_full = False
    nursery.pass_time()
    assert len(waiting.processes) == 3


def test_without_a_descriptor_for_its_pipe_it_is_tried_again(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(os, "pipe", no_descriptor)
        waiting = standbys(nursery, 2)
    assert nursery.pass_time() == [0.2]
    assert len(waiting.processes) == 2


def no_descriptor() -> tuple[int, int]:
    raise OSError(errno.EMFILE, "Too many open files")


def test_the_end_of_the_launcher_ends_their_pipes(nursery: Nursery) -> None:
    waiting = standbys(nursery, 2)
    waiting.close()
    assert [process.told() for process in nursery.begun] == ["", ""]
    for process in nursery.begun:
        process.on_exit(0)
    nursery.pass_time()
    assert len(nursery.begun) == 2


def test_every_thread_keeps_to_the_cores() -> None:
    cores = os.sched_getaffinity(0)
    try:
        keep_to((min(cores),))
        assert {
            tuple(os.sched_getaffinity(int(task.name)))
            for task in Path("/proc/self/task").iterdir()
        } == {(min(cores),)}
    finally:
        keep_to(tuple(cores))

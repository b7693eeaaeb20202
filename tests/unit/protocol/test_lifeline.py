"""A death is told as it begins: before the memory of the dead was given back."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading

import pytest

from protocol.lifeline import hasten, watch
from tests.patience import PATIENCE_S
from tests.priorities import may_leave_idle_priority

HOLDER = """
import signal, sys
from protocol.lifeline import Lifeline
memory = bytearray(int(sys.argv[1]))
memory[::4096] = b"x" * len(memory[::4096])
line = Lifeline()
print(line.fd, flush=True)
signal.pause()
"""


class Holder:
    """A process that holds its lifeline until it is killed."""

    def __init__(self, num_bytes: int = 0) -> None:
        command = [sys.executable, "-c", HOLDER, str(num_bytes)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.fd = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def holder() -> Holder:
    return Holder()


def test_every_watch_hears_of_a_death_and_none_before(holder: Holder) -> None:
    cuts = [threading.Event() for _ in range(3)]
    for cut in cuts:
        watch(holder.process.pid, holder.fd, cut.set)
    assert not cuts[0].wait(0.05)
    holder.kill()
    assert all(cut.wait(PATIENCE_S) for cut in cuts)


def test_it_is_heard_before_the_memory_was_given_back() -> None:
    """In one of a few attempts: who waits may come late to the processor."""
    was_there: list[bool] = []

    def attempt() -> bool:
        holder, cut = Holder(256 << 20), threading.Event()
        pidfd = os.pidfd_open(holder.process.pid)

        def look() -> None:
            was_there.append(not select.select([pidfd], [], [], 0)[0])
            cut.set()

        watch(holder.process.pid, holder.fd, look)
        holder.kill()
        assert cut.wait(PATIENCE_S)
        os.close(pidfd)
        return was_there[-1]

    assert any(attempt() for _ in range(10))


def test_who_stops_for_a_while_is_not_dead(holder: Holder) -> None:
    cut = threading.Event()
    watch(holder.process.pid, holder.fd, cut.set)
    holder.process.send_signal(signal.SIGSTOP)
    assert not cut.wait(0.05)
    holder.kill()
    assert cut.wait(PATIENCE_S)


def test_who_is_dead_already_or_has_no_such_descriptor_is_an_error(holder: Holder) -> None:
    with pytest.raises(FileNotFoundError):
        watch(holder.process.pid, 1023, lambda: None)
    holder.kill()
    with pytest.raises(FileNotFoundError):
        watch(holder.process.pid, holder.fd, lambda: None)


IDLER = """
import os, signal, threading

def wait_at_idle_priority():
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    print(threading.get_native_id(), flush=True)
    threading.Event().wait()

threading.Thread(target=wait_at_idle_priority, daemon=True).start()
signal.pause()
"""


def test_threads_of_the_dying_are_not_the_last_to_run() -> None:
    """Of a process that lives, so that it can be looked at."""
    process = subprocess.Popen([sys.executable, "-c", IDLER], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        thread = int(process.stdout.readline())
        assert os.sched_getscheduler(thread) == os.SCHED_IDLE
        hasten(process.pid)
        assert os.sched_getscheduler(thread) == (
            os.SCHED_OTHER if may_leave_idle_priority() else os.SCHED_IDLE
        )
        assert os.sched_getscheduler(process.pid) == os.SCHED_OTHER
    finally:
        process.kill()
        process.communicate()
    hasten(process.pid)  # of nobody any more: nothing happens

"""Workers of one host help each other while they sleep."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deploy.host.affinity import quota_cores
from tests.e2e.server import Server
from tests.patience import PATIENCE_S, is_readable, until
from tests.priorities import may_leave_idle_priority

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.xdist_group("model"),
    pytest.mark.skipif(
        not 2 <= len(os.sched_getaffinity(0)) <= (quota_cores() or math.inf),
        reason="nobody has a core of its own to lend",
    ),
]
SMALL = ("--pd", "1p1d", "--kv-cache-memory", "64MiB")


def lent_threads(worker: dict[str, Any]) -> list[int]:
    """Threads of idle priority."""
    tasks = (int(task.name) for task in Path(f"/proc/{worker['pid']}/task").iterdir())
    return [task for task in tasks if os.sched_getscheduler(task) == os.SCHED_IDLE]


def worked_ns(worker: dict[str, Any], thread: int) -> int:
    stat = Path(f"/proc/{worker['pid']}/task/{thread}/schedstat")
    return int(stat.read_text(encoding="ascii").split()[0])


def ask(server: Server) -> str:
    asked = {"prompt": "One, two, three", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    text: str = server.complete(model="smollm2-135m", **asked)["choices"][0]["text"]
    return text


@contextmanager
def busy_cores(each: int) -> Iterator[None]:
    """So many processes on every core that never sleep."""
    spin = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
    processes = [
        subprocess.Popen([sys.executable, "-c", spin, str(core)])
        for core in os.sched_getaffinity(0)
        for _ in range(each)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.deep
@pytest.mark.alone
def test_a_worker_that_is_killed_on_a_full_machine_is_soon_over_and_comes_back() -> None:
    """Its threads of idle priority would be the last to run, and give its memory back by and by."""
    if not may_leave_idle_priority():
        pytest.skip("this system lets no thread leave idle priority")
    with Server(*SMALL) as server, busy_cores(4):
        killed = server.worker("decode")["pid"]
        pidfd = os.pidfd_open(killed)
        os.kill(killed, signal.SIGKILL)
        assert is_readable(pidfd, PATIENCE_S / 6), "it is still there"
        os.close(pidfd)
        server.await_pair()
        assert server.worker("decode")["pid"] != killed


def test_an_answer_that_is_alone_is_computed_on_the_sleepers_cores_too_and_is_the_same() -> None:
    with Server(*SMALL) as server:
        decode, prefill = server.worker("decode"), server.worker("prefill")
        threads = lent_threads(decode)
        own = os.sched_getaffinity(prefill["pid"])
        assert {core for thread in threads for core in os.sched_getaffinity(thread)} == own
        for thread in threads:
            with suppress(PermissionError):  # where others are busy, they would let it wait
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
        before = [worked_ns(decode, thread) for thread in threads]
        said = []

        def is_used() -> bool:
            said.append(ask(server))
            return [worked_ns(decode, thread) for thread in threads] != before

        until(is_used, "a step on a lent core")
    with Server(*SMALL, "--no-lend-cores") as server:
        assert lent_threads(server.worker("decode")) == []
        assert {ask(server)} == set(said)

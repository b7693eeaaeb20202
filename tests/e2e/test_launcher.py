"""The launcher over fake children: starting, dying, restarting, and leaving nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from protocol import wire
from protocol.messages.launcher import RetireOrder, RoleOrder, ScaleOrder, StopOrder
from protocol.roles import Role
from tests.e2e.launcher_driver import GRACE_S
from tests.patience import PATIENCE_S, until

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]


class Driven:
    """A running launcher_driver; `lines` grows in a thread."""

    def __init__(self, root: Path, behaviour: Path) -> None:
        env = dict(os.environ, PYTHONPATH=str(ROOT), BATON_TEST_BEHAVIOUR=str(behaviour))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.launcher_driver", str(root)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
            cwd=ROOT,
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                with self._news:
                    self.lines.append(line.strip())
                    self._news.notify_all()

    def wait_for(self, text: str, count: int = 1, timeout: float = PATIENCE_S) -> None:
        with self._news:
            found = self._news.wait_for(
                lambda: sum(text in line for line in self.lines) >= count, timeout
            )
        assert found, self.lines

    def children(self) -> dict[str, psutil.Process]:
        """Name → process of everything below the driver."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return {Path(child.cmdline()[4]).stem: child for child in found}

    def end(self, timeout: float = PATIENCE_S) -> int:
        status = self.process.wait(timeout)
        self._thread.join(PATIENCE_S)
        return status


class Starter:
    """Starts drivers over one root of run directories."""

    def __init__(self, root: Path, behaviour: Path) -> None:
        self.root, self._behaviour = root, behaviour
        self.started: list[Driven] = []

    def __call__(self) -> Driven:
        self.started.append(Driven(self.root, self._behaviour))
        return self.started[-1]


@pytest.fixture
def behaviour(tmp_path: Path) -> Path:
    directory = tmp_path / "behaviour"
    directory.mkdir()
    return directory


@pytest.fixture
def driven(tmp_path, behaviour):
    root = Path("/tmp") / f"bt-{os.getpid()}-{tmp_path.name}"[:40]
    root.mkdir(exist_ok=True)
    starter = Starter(root, behaviour)
    yield starter
    for one in starter.started:
        if one.process.poll() is None:
            one.process.kill()
        one.end()
    for left in root.iterdir():
        for file in left.iterdir():
            file.unlink()
        left.rmdir()
    root.rmdir()


def run_directories(driven) -> list[Path]:
    return list(driven.root.glob("baton-run-*"))


def gone(processes: list[psutil.Process], timeout: float) -> bool:
    """Ended within the time, and whoever inherits them may still have to take note of it."""
    left = psutil.wait_procs(processes, timeout)[1]
    return all(map(is_dead, left))


def is_dead(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_ready_line_carries_news_and_files_are_private(driven) -> None:
    one = driven()
    one.wait_for("READY")
    assert any('READY {"backend": "fake"}' in line for line in one.lines)
    (directory,) = run_directories(driven)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in directory.glob("*.json")} == {0o600}
    assert set(one.children()) == {"coordinator", "prefill-0", "decode-0"}


def test_interrupt_ends_everything_with_status_0(driven) -> None:
    one = driven()
    one.wait_for("READY")
    children = list(one.children().values())
    one.process.send_signal(signal.SIGINT)
    assert one.end() == 0
    assert gone(children, 0.1)
    assert run_directories(driven) == []


def test_a_child_deaf_to_sigterm_is_killed_in_time(driven, behaviour) -> None:
    (behaviour / "decode-0").write_text("deaf")
    one = driven()
    one.wait_for("READY")
    one.wait_for("decode-0 runs")
    children = list(one.children().values())
    started = time.perf_counter()
    one.process.send_signal(signal.SIGTERM)
    assert one.end() == 0
    assert time.perf_counter() - started >= 0.9 * GRACE_S
    assert gone(children, 0.1)


def test_a_second_interrupt_kills_at_once(driven, behaviour) -> None:
    (behaviour / "decode-0").write_text("deaf")
    (behaviour / "grace").write_text(str(10 * PATIENCE_S))
    one = driven()
    one.wait_for("READY")
    one.wait_for("decode-0 runs")
    one.wait_for("prefill-0 runs")
    obedient = one.children()["prefill-0"]
    one.process.send_signal(signal.SIGINT)
    assert gone([obedient], PATIENCE_S), "the first was not heard"
    one.process.send_signal(signal.SIGINT)
    assert one.end() == 0


def test_killed_worker_is_reported_and_started_again(driven, behaviour) -> None:
    one = driven()
    one.wait_for("READY")
    one.wait_for("prefill-0 runs")
    one.children()["prefill-0"].kill()
    one.wait_for("starting it again in 0.2 s")
    one.wait_for("prefill-0 runs", count=2)
    one.process.send_signal(signal.SIGINT)
    assert one.end() == 0
    journal = (behaviour / "journal").read_bytes()
    assert b"LauncherHello" in journal
    assert b"WorkerExited" in journal


@pytest.mark.parametrize("name", ["prefill-0", "coordinator"])
def test_process_that_ends_while_no_descriptor_is_left_comes_back(driven, name) -> None:
    one = driven()
    one.wait_for("READY")
    one.wait_for(f"{name} runs")
    launcher, victim = psutil.Process(one.process.pid), one.children()[name]
    soft, hard = launcher.rlimit(psutil.RLIMIT_NOFILE)
    launcher.rlimit(psutil.RLIMIT_NOFILE, (launcher.num_fds(), hard))
    victim.kill()
    one.wait_for("could not be started by the system", count=2)
    launcher.rlimit(psutil.RLIMIT_NOFILE, (soft, hard))
    one.wait_for(f"{name} runs", count=2)
    one.process.send_signal(signal.SIGINT)
    assert one.end() == 0


def test_killed_coordinator_returns_and_is_greeted_again(driven, behaviour) -> None:
    one = driven()
    one.wait_for("READY")
    journal = behaviour / "journal"
    one.wait_for("coordinator runs")
    until(journal.exists, "a word to the coordinator")
    one.children()["coordinator"].kill()
    one.wait_for("coordinator runs", count=2)
    until(lambda: journal.read_bytes().count(b"LauncherHello") >= 2, "the second greeting")
    assert sum("READY" in line for line in one.lines) == 1


def test_refusing_child_stops_the_start_with_its_own_words(driven, behaviour) -> None:
    (behaviour / "coordinator").write_text("mute")
    (behaviour / "prefill-0").write_text("refuse")
    one = driven()
    assert one.end() == 2
    assert any(
        "FAILED prefill-0 ended with status 2 while starting: block size 3 is odd" in line
        for line in one.lines
    ), one.lines
    assert run_directories(driven) == []


def test_children_of_a_killed_launcher_die_and_the_next_one_cleans_up(driven) -> None:
    one = driven()
    one.wait_for("READY")
    children = list(one.children().values())
    one.process.kill()
    assert gone(children, PATIENCE_S)
    (left,) = run_directories(driven)
    two = driven()
    two.wait_for("READY")
    assert not left.exists()


def order(behaviour: Path, message: msgspec.Struct) -> None:
    """Have the fake coordinator say it, in answer to the launcher's next hello."""
    with (behaviour / "orders").open("a") as file:
        file.write(wire.encode(message).hex() + "\n")


def journal_says(behaviour: Path, *words: bytes) -> None:
    """Wait until one message to the coordinator has all these words."""
    deadline = time.perf_counter() + PATIENCE_S
    while True:
        journal = behaviour / "journal"
        lines = journal.read_bytes().splitlines() if journal.exists() else []
        if any(all(word in line for word in words) for line in lines):
            return
        assert time.perf_counter() < deadline, lines[-3:]
        time.sleep(0.02)


def end(one: Driven) -> None:
    one.process.send_signal(signal.SIGINT)
    assert one.end() == 0


def test_ordered_worker_is_started_and_listed(driven, behaviour) -> None:
    one = driven()
    one.wait_for("READY")
    order(behaviour, ScaleOrder(worker_id="prefill-1", role=Role.PREFILL))
    order(behaviour, ScaleOrder(worker_id="prefill-1", role=Role.PREFILL))
    one.wait_for("prefill-1 runs")
    journal_says(behaviour, b"LauncherHello", b"prefill-1")
    assert set(one.children()) == {"coordinator", "prefill-0", "decode-0", "prefill-1"}
    assert sum("prefill-1 runs" in line for line in one.lines) == 1
    end(one)


def test_stopped_worker_is_gone_for_good(driven, behaviour) -> None:
    one = driven()
    one.wait_for("READY")
    one.wait_for("prefill-0 runs")
    order(behaviour, StopOrder(worker_id="prefill-0"))
    journal_says(behaviour, b"WorkerExited", b"prefill-0", b"restart_in_s\xc0")
    assert set(one.children()) == {"coordinator", "decode-0"}
    order(behaviour, StopOrder(worker_id="coordinator"))
    order(behaviour, ScaleOrder(worker_id="prefill-0", role=Role.PREFILL))
    one.wait_for("prefill-0 runs", count=2)
    assert "coordinator" in one.children()
    end(one)


def test_retired_worker_runs_on_and_is_not_started_again(driven, behaviour) -> None:
    one = driven()
    one.wait_for("READY")
    one.wait_for("prefill-0 runs")
    order(behaviour, RetireOrder(worker_id="prefill-0"))
    journal_says(behaviour, b"LauncherHello", b"leaving\xc3")
    one.children()["prefill-0"].kill()
    journal_says(behaviour, b"WorkerExited", b"prefill-0", b"restart_in_s\xc0")
    assert not any("starting it again" in line for line in one.lines)
    end(one)


def test_flipped_worker_is_started_again_in_its_new_role(driven, behaviour) -> None:
    one = driven()
    one.wait_for("READY")
    one.wait_for("prefill-0 runs")
    order(behaviour, RoleOrder(worker_id="prefill-0", role=Role.DECODE))
    (directory,) = run_directories(driven)
    spec = directory / "prefill-0.json"
    until(lambda: b'"role":"decode"' in spec.read_bytes(), "the new role in its spec")
    one.children()["prefill-0"].kill()
    one.wait_for("prefill-0 runs", count=2)
    end(one)


def test_ordered_worker_that_cannot_work_is_refused_with_its_own_words(driven, behaviour) -> None:
    (behaviour / "decode-1").write_text("refuse")
    one = driven()
    one.wait_for("READY")
    order(behaviour, ScaleOrder(worker_id="decode-1", role=Role.DECODE))
    journal_says(behaviour, b"ScaleRefused", b"decode-1", b"block size 3 is odd")
    assert not any("starting it again" in line for line in one.lines)
    end(one)


def test_worker_whose_pool_does_not_fit_is_refused_with_numbers(driven, behaviour) -> None:
    (behaviour / "available").write_text(str(1 << 20))
    one = driven()
    one.wait_for("READY")
    order(behaviour, ScaleOrder(worker_id="decode-1", role=Role.DECODE))
    journal_says(behaviour, b"ScaleRefused", b"1.0 MiB now available")
    assert "decode-1" not in one.children()
    end(one)

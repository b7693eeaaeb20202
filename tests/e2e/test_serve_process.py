"""`baton serve` as a person runs it: starting, asking, and leaving nothing behind."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.e2e.server import BATON, MOCK, Server, free_port
from tests.marks import deep
from tests.patience import PATIENCE_S, in_time, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("model")]
SMALL = ("--kv-cache-memory", "256MiB")


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


def run_directory_of(pid: int) -> Path:
    """The launcher's run directory: the one whose spec file a child was given."""
    commands = [child.cmdline() for child in psutil.Process(pid).children()]
    (found,) = {Path(word).parent for words in commands for word in words if word.endswith(".json")}
    return found


def baton(*arguments: str, timeout: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BATON), *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(*SMALL, afresh=True) as running:
        yield running


def test_banner_shows_what_runs_and_a_line_that_works(server) -> None:
    until(lambda: "curl -N" in server.log(), "the banner")
    log = server.log()
    assert f"{server.url}/v1" in log
    assert "1 prefill" in log
    assert "1 decode" in log
    (line,) = re.findall(r"^curl -N .*$", log, re.MULTILINE)
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert "data: [DONE]" in done.stdout


def test_chat_answers_one_question(server) -> None:
    done = baton("chat", "--url", server.url, "--max-tokens", "8", "What is the capital of Japan?")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_status_lists_both_workers(server) -> None:
    done = baton("status", "--url", server.url)
    assert done.returncode == 0, done.stderr
    assert "prefill-0" in done.stdout
    assert "decode-0" in done.stdout


def test_taken_port_is_said_at_once(server) -> None:
    done = baton("serve", "--port", str(server.port))
    assert done.returncode == 2
    assert "--port" in done.stderr


def test_nothing_answers_when_nothing_runs() -> None:
    done = baton("chat", "--url", f"http://127.0.0.1:{free_port()}", "hello")
    assert done.returncode == 1
    assert "baton serve" in done.stderr


def test_a_model_that_is_not_there_is_refused_before_anything_starts() -> None:
    done = baton("serve", "/absent/model", "--port", str(free_port()))
    assert done.returncode == 2
    assert "/absent/model" in done.stderr


@pytest.mark.alone
@pytest.mark.parametrize(
    ("number", "program"),
    [
        (signal.SIGINT, (str(BATON),)),
        deep(signal.SIGTERM, MOCK),
        deep(signal.SIGTERM, (str(BATON),)),
    ],
    ids=["SIGINT", "SIGTERM, no weights", "SIGTERM"],
)
def test_a_signal_ends_everything_within_3_s_and_leaves_nothing(number, program) -> None:
    def attempt() -> float:
        before = shared_memory()
        with Server(*SMALL, program=program, afresh=True) as running:
            processes = psutil.Process(running.process.pid).children(recursive=True)
            directory = run_directory_of(running.process.pid)
            assert len(processes) == 3
            running.client.close()
            started = time.perf_counter()
            running.process.send_signal(number)
            assert running.process.wait(PATIENCE_S) == 0
            took_s = time.perf_counter() - started
        assert not any(process.is_running() for process in processes)
        assert not directory.exists()
        assert shared_memory() == before
        return took_s

    in_time(attempt, 3.0)


@pytest.mark.deep
@pytest.mark.alone
def test_interrupt_during_an_answer_still_ends_in_time() -> None:
    body = {"model": "smollm2-135m", "prompt": "Once", "max_tokens": 4000, "ignore_eos": True}

    def attempt() -> float:
        with (
            Server(*SMALL, afresh=True) as running,
            running.client.stream(
                "POST", "/v1/completions", json={**body, "stream": True}
            ) as reply,
        ):
            assert next(reply.iter_lines())
            took_s = running.interrupt()
        assert running.process.returncode == 0
        return took_s

    in_time(attempt, 3.0)


@pytest.mark.alone
@pytest.mark.parametrize("program", [MOCK, deep((str(BATON),))], ids=["no weights", "weights"])
def test_children_of_a_killed_launcher_die_with_it(program) -> None:
    before = shared_memory()
    with Server(*SMALL, program=program, afresh=program is not MOCK) as running:
        processes = psutil.Process(running.process.pid).children(recursive=True)
        directory = run_directory_of(running.process.pid)
        running.process.kill()
        assert psutil.wait_procs(processes, PATIENCE_S)[1] == []
        running.process.wait()
    assert shared_memory() == before
    assert directory.exists()  # nobody was left to remove it; the next start does
    with Server(*SMALL, program=MOCK):
        assert not directory.exists()


@pytest.mark.alone
def test_second_start_is_ready_within_5_s() -> None:
    def attempt() -> float:
        with Server(*SMALL, afresh=True) as running:
            return running.ready_after_s

    in_time(attempt, 5.0)


@pytest.mark.alone
def test_help_is_quick() -> None:
    def attempt() -> float:
        started = time.perf_counter()
        done = subprocess.run([str(BATON), "--help"], capture_output=True, check=True)
        assert b"serve" in done.stdout
        return time.perf_counter() - started

    in_time(attempt, 0.5)

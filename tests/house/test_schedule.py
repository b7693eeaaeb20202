"""The order of a run, over real worker processes of pytest-xdist."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.marks import deep

ROOT = Path(__file__).parents[2]
UNUSED = ("schemathesis", "hypothesispytest", "anyio")
"""Plugins that take longer to load than these suites to run."""
TESTS = """
import os, threading, time
from pathlib import Path
import pytest

def note(name):
    started = time.monotonic()
    threading.Event().wait(0.05)
    line = f"{name} {os.getpid()} {started} {time.monotonic()}\\n"
    with Path(os.environ["JOURNAL"]).open("a") as journal:
        journal.write(line)

@pytest.mark.parametrize("number", range(4))
def test_beside_others(number):
    note("beside")

@pytest.mark.alone
@pytest.mark.parametrize("number", range(2))
def test_alone(number):
    note("alone")

@pytest.mark.xdist_group("dear")
def test_of_a_group():
    note("group")
"""


class Ran:
    """One test that ran: its kind, its process, and its time."""

    def __init__(self, line: str) -> None:
        self.kind, pid, started, ended = line.split()
        self.pid, self.started_s, self.ended_s = int(pid), float(started), float(ended)


CRASHING = """
import os
import pytest

@pytest.mark.parametrize("number", range(3))
def test_beside_others(number):
    if number == 1:
        os._exit(3)

@pytest.mark.alone
@pytest.mark.parametrize("number", range(3))
def test_alone(number):
    if number == 1:
        os._exit(3)
"""


def run_suite(directory: Path, processes: int) -> subprocess.CompletedProcess[str]:
    """Its tests on so many processes; what they wrote is in `journal`."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml")),
            *("-p", "tests.schedule", "-n", str(processes), "--dist", "loadgroup"),
            *(word for plugin in UNUSED for word in ("-p", f"no:{plugin}")),
            *(str(directory), "--rootdir", str(directory), "-p", "no:cacheprovider"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JOURNAL": str(directory / "journal")},
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
@pytest.mark.deep
def test_a_crash_costs_the_test_that_crashed_and_no_other(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"test_{name}.py").write_text(CRASHING)
    done = run_suite(tmp_path, 2)
    assert "4 failed, 8 passed" in done.stdout.splitlines()[-1], done.stdout


@pytest.fixture(scope="module", params=[deep(1), 2, deep(4)], ids="on {}".format)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Ran]:
    """Three files of seven tests, on so many processes."""
    directory = tmp_path_factory.mktemp("suite")
    for name in ("one", "two", "three"):
        (directory / f"test_{name}.py").write_text(TESTS)
    done = run_suite(directory, request.param)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lanes ended at gw0 " in done.stdout
    assert ", alone until " in done.stdout
    return [Ran(line) for line in (directory / "journal").read_text().splitlines()]


def test_every_test_runs_once(ran: list[Ran]) -> None:
    assert sorted(one.kind for one in ran) == ["alone"] * 6 + ["beside"] * 12 + ["group"] * 3


def test_nothing_runs_beside_or_after_a_test_that_is_alone(ran: list[Ran]) -> None:
    lone = [one for one in ran if one.kind == "alone"]
    others = [one for one in ran if one.kind != "alone"]
    assert max(one.ended_s for one in others) <= min(one.started_s for one in lone)
    assert len({one.pid for one in lone}) == 1


def test_a_group_begins_before_all_others(ran: list[Ran]) -> None:
    (pid,) = {one.pid for one in ran if one.kind == "group"}
    first = min((one for one in ran if one.pid == pid), key=lambda one: one.started_s)
    assert first.kind == "group"


def test_a_group_stays_in_one_process(ran: list[Ran]) -> None:
    assert len({one.pid for one in ran if one.kind == "group"}) == 1

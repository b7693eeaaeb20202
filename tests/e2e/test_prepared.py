"""Forks of a prepared process are, to everybody around them, the programs that they run."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e import prepared
from tests.patience import PATIENCE_S, until

pytestmark = pytest.mark.e2e


@contextmanager
def child(directory: Path, behaviour: str) -> Iterator[tuple[prepared.Forked, Path]]:
    """The launcher's test child, and what it says."""
    (directory / "one").write_text(behaviour)
    said, parent = directory / "said", prepared.prepared()[1].pid
    with said.open("wb") as output:
        command = ["tests.e2e.fake_child", str(directory / "one.json"), "--parent", str(parent)]
        process = prepared.start(command, output.fileno())
    try:
        yield process, said
    finally:
        process.kill()
        process.wait(PATIENCE_S)


@pytest.fixture(autouse=True)
def behaviours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Read by the child in its environment: the fork has this test's, not the one of its start."""
    monkeypatch.setenv("BATON_TEST_BEHAVIOUR", str(tmp_path))


def test_a_fork_runs_as_its_program_in_a_session_of_its_own(tmp_path: Path) -> None:
    with child(tmp_path, "") as (process, said):
        until(lambda: said.read_text() == "one runs\n", "its line")
        words = Path(f"/proc/{process.pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        assert words[1:4] == [b"-P", b"-m", b"tests.e2e.fake_child"]
        assert words[4] == os.fsencode(tmp_path / "one.json")
        assert os.getsid(process.pid) == process.pid
        assert Path(f"/proc/{process.pid}/cwd").readlink() == Path.cwd()


def test_a_fork_has_no_descriptors_but_its_own(tmp_path: Path) -> None:
    with child(tmp_path, "") as (process, said):
        until(lambda: said.read_text() == "one runs\n", "its line")
        open_ones = {path.name for path in Path(f"/proc/{process.pid}/fd").iterdir()}
    assert open_ones == {"0", "1", "2"}


def test_a_forks_exit_status_is_the_programs(tmp_path: Path) -> None:
    with child(tmp_path, "refuse") as (process, said):
        assert process.wait(PATIENCE_S) == 2
        assert process.poll() == process.returncode == 2
    assert said.read_text() == "block size 3 is odd\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_fork_ends_by_a_signal_as_the_program_would(tmp_path: Path, number: int) -> None:
    with child(tmp_path, "") as (process, said):
        until(lambda: said.read_text() == "one runs\n", "its line")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == -number

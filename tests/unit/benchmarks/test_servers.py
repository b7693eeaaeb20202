"""Servers that a benchmark started end with everything in their session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.servers import end, start
from tests.marks import deep
from tests.patience import PATIENCE_S, is_readable

STUBBORN_CHILD = "(trap '' INT; echo $BASHPID; exec sleep 100) & "


def first_line(log: Path) -> str:
    deadline_s = time.monotonic() + PATIENCE_S
    while not log.read_text().endswith("\n"):
        assert time.monotonic() < deadline_s
    return log.read_text()


@pytest.mark.parametrize("then", ["exit 2", deep("wait")])
def test_nothing_of_a_session_outlives_its_end(tmp_path: Path, then: str) -> None:
    server = start(["bash", "-c", STUBBORN_CHILD + then], tmp_path / "log")
    child = os.pidfd_open(int(first_line(tmp_path / "log")))
    try:
        if then == "exit 2":
            assert server.wait(PATIENCE_S) == 2
        end(server)
        assert server.poll() is not None
        assert is_readable(child, PATIENCE_S), "a child lives on"
    finally:
        os.close(child)


OWNED = """
import sys, time
from pathlib import Path
from benchmarks.servers import end, start
server = start(["bash", "-c", "echo $$; exec sleep 100"], Path(sys.argv[1]))
try:
    time.sleep(100)
finally:
    end(server)
"""
NOT_OWNED_YET = """
import sys, time
from pathlib import Path
from benchmarks.servers import start
start(["bash", "-c", "echo $$; exec sleep 100"], Path(sys.argv[1]))
time.sleep(100)
"""
BEING_STARTED = """
import subprocess, sys, time
from pathlib import Path
from benchmarks.servers import start

class SlowToReturn(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        sys.stdin.read()

subprocess.Popen = SlowToReturn
start(["bash", "-c", "echo $$; exec sleep 100"], Path(sys.argv[1]))
time.sleep(100)
"""


IN_THE_BACKGROUND = ["bash", "-c", "trap '' INT; exec \"$@\"", "bash"]
"""As a shell without job control starts what ends in `&`."""


def test_a_server_of_a_benchmark_in_the_background_hears_interrupts(tmp_path: Path) -> None:
    script = "import sys\nfrom pathlib import Path\nfrom benchmarks.servers import end, start\n"
    script += "start(['sleep', '100'], Path(sys.argv[1]))\n"
    begun_s = time.monotonic()
    command = [*IN_THE_BACKGROUND, sys.executable, "-c", script, str(tmp_path / "log")]
    subprocess.run(command, check=True, timeout=PATIENCE_S)
    assert time.monotonic() - begun_s < 15, "it was killed after 20 s"


@pytest.mark.parametrize("script", [OWNED, NOT_OWNED_YET, BEING_STARTED])
def test_a_benchmark_that_is_terminated_leaves_no_server(tmp_path: Path, script: str) -> None:
    log = tmp_path / "log"
    log.touch()
    with subprocess.Popen(
        [sys.executable, "-c", script, str(log)], stdin=subprocess.PIPE
    ) as benchmark:
        server = os.pidfd_open(int(first_line(log)))
        try:
            benchmark.send_signal(signal.SIGTERM)
            assert benchmark.stdin is not None
            benchmark.stdin.close()
            assert benchmark.wait(PATIENCE_S) == 128 + signal.SIGTERM
            assert is_readable(server, PATIENCE_S), "its server lives on"
        finally:
            os.close(server)

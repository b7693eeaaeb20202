"""Nobody reads stderr, and the pipe is full: `baton serve` serves, and ends when it is told to."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import free_port
from tests.marks import deep
from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("model")]
ROOT = Path(__file__).parents[2]
START_S = 120.0


def full_pipe() -> tuple[int, int]:
    """A pipe without room for one byte; both ends stay open."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x")
    os.set_blocking(writing, True)
    return reading, writing


def wait_until_served(url: str, process: subprocess.Popen[bytes]) -> None:
    began = time.monotonic()
    with httpx.Client(base_url=url, transport=httpx.HTTPTransport(retries=0)) as client:
        while time.monotonic() - began < START_S:
            assert process.poll() is None
            with contextlib.suppress(httpx.TransportError):
                if client.get("/health").status_code == 200:
                    return
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
    raise AssertionError("not served in time")


@pytest.mark.parametrize("number", [signal.SIGINT, deep(signal.SIGTERM)])
def test_stderr_that_nobody_reads(number):
    port = free_port()
    reading, writing = full_pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.mock_engine", "serve", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=writing,
        cwd=ROOT,
    )
    try:
        wait_until_served(f"http://127.0.0.1:{port}", process)
        process.send_signal(number)
        assert process.wait(PATIENCE_S) in (0, 130)
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)

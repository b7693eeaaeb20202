"""`baton status --watch` on a real terminal."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time

import pytest

from tests.e2e.server import BATON, Server
from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("model")]


class Terminal:
    """`baton status --watch` behind a pseudo-terminal of 100 columns; `seen` is all it wrote."""

    def __init__(self, url: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.process = subprocess.Popen(
            # as a job that a script starts with &: it ignores SIGINT from its start
            [
                "sh",
                "-c",
                "trap '' INT; exec \"$@\"",
                "sh",
                str(BATON),
                "status",
                "--watch",
                "--url",
                url,
            ],
            stdout=theirs,
            stderr=theirs,
            env=dict(os.environ, TERM="xterm-256color"),
        )
        os.close(theirs)
        self.seen = b""

    def wait_for(self, text: str, seconds: float = PATIENCE_S) -> None:
        until_s = time.monotonic() + seconds
        while text.encode() not in self.seen:
            assert time.monotonic() < until_s, self.seen.decode(errors="replace")
            self._read()

    def interrupt(self, seconds: float = PATIENCE_S) -> int:
        """Ctrl-C; its status. Read on: a full terminal would keep it from its last words."""
        self.process.send_signal(signal.SIGINT)
        until_s = time.monotonic() + seconds
        while (status := self.process.poll()) is None:
            assert time.monotonic() < until_s, "still there after Ctrl-C"
            self._read()
        return status

    def _read(self) -> None:
        if select.select([self._ours], [], [], 0.1)[0]:
            try:
                self.seen += os.read(self._ours, 1 << 16)
            except OSError as error:  # the last writer is gone
                assert error.errno == errno.EIO  # noqa: PT017 - on Linux this is how a terminal ends

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)


def test_watch_follows_a_server_until_ctrl_c() -> None:
    with Server("--kv-cache-memory", "256MiB") as server:
        terminal = Terminal(server.url)
        try:
            terminal.wait_for("decode-0")
            os.kill(server.worker("decode")["pid"], signal.SIGKILL)
            terminal.seen = b""
            terminal.wait_for("process exited")
            terminal.wait_for("● ready")
            assert terminal.interrupt() == 0
        finally:
            terminal.close()

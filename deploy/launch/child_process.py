"""One child process, watched through its pidfd. Owns its pipes and its end; restarting is decided in `launching.roster`.

One that was started here is a ChildProcess; one that was adopted (`deploy.launch.local.forks`) is watched in the same way.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections import deque
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import BinaryIO

_READ_BYTES = 1 << 16
_TAIL_LINES = 20


class WatchedProcess:
    """A child that runs and leads its own process group; `on_exit(status)` is called once, after its last line.

    `output` is what it says, closed with its end; `reap` takes note of the end and returns the status.
    """

    def __init__(
        self,
        pid: int,
        output: BinaryIO,
        reap: Callable[[], int],
        on_line: Callable[[str], None],
        on_exit: Callable[[int], None],
    ) -> None:
        self.pid = pid
        self._loop = asyncio.get_running_loop()
        self._output, self._output_fd, self._reap = output, output.fileno(), reap
        self._on_line, self._on_exit = on_line, on_exit
        self._partial = b""
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.status: int | None = None
        self._pidfd = self._open_pidfd()
        os.set_blocking(self._output_fd, False)
        self._loop.add_reader(self._output_fd, self._read)
        self._loop.add_reader(self._pidfd, self._ended)

    def _open_pidfd(self) -> int:
        """OSError when there is no descriptor left: nothing runs that nobody watches."""
        try:
            return os.pidfd_open(self.pid)
        except OSError:
            os.kill(self.pid, signal.SIGKILL)
            self._reap()
            self._output.close()
            raise

    def becomes(self, on_line: Callable[[str], None], on_exit: Callable[[int], None]) -> None:
        """Others hear of it from now on."""
        self._on_line, self._on_exit = on_line, on_exit
        self.tail.clear()

    @property
    def running(self) -> bool:
        """Not yet reaped."""
        return self.status is None

    def terminate(self) -> None:
        """Ask it to end, in its own time."""
        self._signal(signal.SIGTERM)

    def interrupt(self) -> None:
        """Ask it to end now: a worker takes SIGTERM for a drain."""
        self._signal(signal.SIGINT)

    def _signal(self, number: int) -> None:
        if self.running:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """End it and whatever it started, at once."""
        if self.running:
            os.killpg(self.pid, signal.SIGKILL)

    def _read(self) -> bool:
        """Hand on complete lines; False at the end of the pipe or when nothing more is there."""
        try:
            data = os.read(self._output_fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._output_fd)
            return False
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._tell(line)
        return True

    def _tell(self, line: bytes) -> None:
        shown = line.decode("utf-8", "replace").rstrip()
        if shown:
            self.tail.append(shown)
            self._on_line(shown)

    def _ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.status = self._reap()
        os.close(self._pidfd)
        while self._read():
            pass
        self._tell(self._partial)
        self._loop.remove_reader(self._output_fd)
        self._output.close()
        self._on_exit(self.status)


class ChildProcess(WatchedProcess):
    """Started at construction.

    In a process group of its own, so that a terminal's Ctrl-C reaches the launcher alone. With `defers_interrupt` a SIGINT
    waits until the child lets it in (`deploy.processes.child.end_by_interrupt`, which our own processes begin with): Python
    would answer one that comes while it imports with a traceback.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        on_line: Callable[[str], None],
        on_exit: Callable[[int], None],
        pass_fds: tuple[int, ...] = (),
        *,
        defers_interrupt: bool = True,
    ) -> None:
        blocked = {signal.SIGINT} if defers_interrupt else set()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)  # a child begins with our mask
        try:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=pass_fds,
                process_group=0,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        assert popen.stdout is not None
        output = cast("BinaryIO", popen.stdout)
        super().__init__(popen.pid, output, popen.wait, on_line, on_exit)


def reap_adopted(pid: int) -> int:
    """The status of a child that another process started; as of one that was killed where somebody else took note of it."""
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return -signal.SIGKILL
    return os.waitstatus_to_exitcode(status)

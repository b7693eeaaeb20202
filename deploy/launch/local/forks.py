"""Workers that begin as forks of one process, which has imported everything. Owns that process, and who waits for a fork.

    fork(path) ──► fork server ──pid──► a worker, watched, at the word          it ended, or is silent: None, and it begins anew

They are this process's own children: a fork's parent ends at once, and the kernel gives orphans to the nearest ancestor that
adopts (`adopt_orphans`). Whatever else is orphaned below comes here too, and is buried (`bury_strangers`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from deploy.processes import fork_orders
from launching.backoff import Backoff
from protocol.errors import ConfigError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection
    from pathlib import Path

    from deploy.launch.child_process import ChildProcess
    from protocol.clock import Clock

_PR_SET_CHILD_SUBREAPER = 36
SILENCE_S = 15.0
"""Of a server that has not answered: a fork takes milliseconds, but the first may wait for the imports."""


class Parent(Protocol):
    """What a launcher does for its fork server."""

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Call `action` in that time, unless everything ends before."""
        ...

    def begin_server(self, orders_fd: int, on_exit: Callable[[int], None]) -> ChildProcess:
        """A fork server that is ordered through this descriptor; OSError when it cannot be started."""
        ...


@dataclass(frozen=True, slots=True)
class Fork:
    """A worker that waits for the word. `output` is the descriptor that it speaks into."""

    pid: int
    output: int
    word: int

    def go(self) -> None:
        """It is watched, and begins."""
        with contextlib.suppress(BrokenPipeError):  # it was killed: whoever watches it hears so
            os.write(self.word, fork_orders.GO)
        os.close(self.word)

    def refuse(self) -> None:
        """Nobody wants it any more: it ends, and is buried like a stranger."""
        os.close(self.word)
        os.close(self.output)


@dataclass(eq=False, slots=True)
class _Asked:
    output: int
    word: int
    then: Callable[[Fork | None], None]


class Forks:
    """Invariant: `then` of every order is called once, in their order."""

    def __init__(self, parent: Parent, clock: Clock) -> None:
        self._parent, self._clock = parent, clock
        self._orders: socket.socket | None = None
        self._server: ChildProcess | None = None
        self._asked: deque[_Asked] = deque()
        self._backoff = Backoff()
        self._started_s = 0.0
        self._is_closed = False

    def bury_strangers(self, watched: Collection[int]) -> None:
        """Take note of the ends of adopted processes that nobody watches; `watched` are those that somebody else does."""
        own = {*watched, *([self._server.pid] if self._server is not None else [])}
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None or ended.si_pid in own:
                return
            os.waitpid(ended.si_pid, 0)

    def start(self) -> None:
        """Begin the server. OSError, for want of descriptors or memory, is tried again like its end."""
        if self._is_closed:
            return
        self._started_s = self._clock.now_s()
        try:
            ours, theirs = fork_orders.pair()
        except OSError:
            self._ended()
            return
        try:
            self._server = self._parent.begin_server(theirs.fileno(), lambda _: self._ended())
        except OSError:
            ours.close()
            self._ended()
            return
        finally:
            theirs.close()
        self._orders = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._told)

    def fork(self, path: Path, then: Callable[[Fork | None], None]) -> bool:
        """Ask for a worker whose spec lies at `path`; False where there is no server: then nobody will hear of it."""
        if self._orders is None:
            return False
        pipes: list[int] = []
        try:
            pipes += os.pipe()
            pipes += os.pipe()
            fork_orders.order(self._orders, path, pipes[1], pipes[2])
        except OSError:
            for descriptor in pipes:
                os.close(descriptor)
            return False
        output, theirs, word_end, word = pipes
        os.close(theirs)
        os.close(word_end)
        asked = _Asked(output, word, then)
        self._asked.append(asked)
        self._parent.later(SILENCE_S, lambda: self._look_after(asked))
        return True

    def _told(self) -> None:
        """The oldest order has its worker, or the server is gone: its end comes by itself."""
        assert self._orders is not None
        pid = fork_orders.next_pid(self._orders)
        if pid is None:
            self._hang_up()
            return
        asked = self._asked.popleft()
        if not pid:
            self._give_up(asked)
        else:
            asked.then(Fork(pid, asked.output, asked.word))

    def _give_up(self, asked: _Asked) -> None:
        os.close(asked.output)
        os.close(asked.word)
        asked.then(None)

    def _look_after(self, asked: _Asked) -> None:
        if asked in self._asked and self._server is not None:
            self._server.kill()

    def _ended(self) -> None:
        """Whoever waited is started in another way, and the server begins again."""
        self._hang_up()
        self._server = None
        while self._asked and not self._is_closed:
            self._give_up(self._asked.popleft())
        lived_s = self._clock.now_s() - self._started_s
        if not self._is_closed:
            self._parent.later(self._backoff.next_s(lived_s), self.start)

    def _hang_up(self) -> None:
        if self._orders is not None:
            asyncio.get_running_loop().remove_reader(self._orders.fileno())
            self._orders.close()
            self._orders = None

    def close(self) -> None:
        """No more of them: the server ends by the end of its socket, and a worker without the word by the end of its pipe."""
        self._is_closed = True
        self._hang_up()
        for asked in self._asked:
            os.close(asked.output)
            os.close(asked.word)
        self._asked.clear()


def adopt_orphans() -> None:
    """From now on a process below this one whose parent ended is this one's child. ConfigError where the system has no such thing."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise ConfigError(f"prctl failed: {os.strerror(ctypes.get_errno())}")

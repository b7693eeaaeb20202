"""Servers whose processes are forks of one that has imported everything. Owns that process, and how a fork becomes a program.

    test ──command, output──► prepared ─fork─► launcher ─fork─► coordinator, workers
         ◄──pid, status───────                (each runs its own module from the first line on, as `python -m` would)

Importing is most of a server's start: half of the processor time of all tests. What a fork cannot show is how a program
comes out of nothing: its environment in /proc, its memory, its hash seed. Whoever tests that starts it `afresh`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import io
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import msgspec

from deploy.config.topology import child_environment
from deploy.launch.child_process import ChildProcess, WatchedProcess, reap_adopted

ROOT = Path(__file__).parents[2]
MODULES = (
    "baton_serve",
    "deploy.commands.serve",
    "deploy.processes.coordinator_main",
    "deploy.processes.coordinator_process",
    "deploy.processes.fork_server",
    "deploy.processes.worker_main",
    "engine.grammar.compiler",
    "engine.runner",
    "tests.e2e.mock_engine",
    "tests.e2e.paced_engine",
    "worker.engine_start",
    "worker.grammars",
    "worker.wiring",
)
OF_LAUNCHERS = {
    "deploy.processes.coordinator_main",
    "deploy.processes.worker_main",
    "tests.e2e.paced_worker",
}
"""Children of a launcher that are forks of it."""
_ORDER_BYTES = 1 << 18
_NUMBER_BYTES = 8
_PADDING = "-" * 2048
"""Room in a command line for those of its forks."""
_ARGUMENTS_BEGIN, _ARGUMENTS_END = 45, 46
"""Fields of /proc/self/stat behind the name of the program."""


class Order(msgspec.Struct):
    """A launcher to start; its output's descriptor comes with it, and that of the pipe for pid and status."""

    command: list[str]
    environment: dict[str, str]
    directory: str


# ---- in a test


class Forked:
    """A process that is not this one's child; what tests need of `subprocess.Popen`."""

    def __init__(self, told: int) -> None:
        self._told = told
        self.pid = self._number()
        self.returncode: int | None = None

    def _number(self) -> int:
        data = os.read(self._told, _NUMBER_BYTES)
        assert len(data) == _NUMBER_BYTES, "the process that was prepared for forks has ended"
        return int.from_bytes(data, "little", signed=True)

    def poll(self) -> int | None:
        """Its status, once it has ended."""
        return self._look(0.0)

    def _look(self, timeout_s: float | None) -> int | None:
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._told, select.POLLIN)
            if poll.poll(None if timeout_s is None else 1000 * timeout_s):
                self.returncode = self._number()
                os.close(self._told)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        status = self._look(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("a forked server", timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@functools.cache
def prepared() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Where to order forks, and who makes them: one process for this test process, which ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno()), _PADDING],
            cwd=ROOT,
            env=child_environment(1),
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
    atexit.register(_dismiss, ours, process)
    return ours, process


def _dismiss(orders: socket.socket, process: subprocess.Popen[bytes]) -> None:
    orders.close()
    process.wait()


def start(command: Sequence[str], output: int) -> Forked:
    """As `subprocess.Popen` would in a session of its own; `command` is what stands behind the interpreter's `-m`."""
    order = Order(list(command), dict(os.environ), str(Path.cwd()))
    told, tells = os.pipe()
    try:
        socket.send_fds(prepared()[0], [msgspec.json.encode(order)], [output, tells])
    finally:
        os.close(tells)
    return Forked(told)


# ---- in the process that is prepared


def load() -> None:
    for name in MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def serve(orders: socket.socket) -> None:
    """Until nobody is left who could order; the status of each fork is told when it has ended."""
    poll = select.poll()
    poll.register(orders, select.POLLIN)
    running: dict[int, tuple[int, int]] = {}
    while True:
        for ready, _ in poll.poll():
            if ready == orders.fileno():
                data, descriptors, _, _ = socket.recv_fds(orders, _ORDER_BYTES, 2)
                if not data:
                    return
                order = msgspec.json.decode(data, type=Order)
                output, tells = descriptors
                pid = _fork(functools.partial(_launch, order, output))
                os.close(output)
                tell(tells, pid)
                pidfd = os.pidfd_open(pid)
                running[pidfd] = pid, tells
                poll.register(pidfd, select.POLLIN)
            else:
                pid, tells = running.pop(ready)
                poll.unregister(ready)
                os.close(ready)
                tell(tells, reap_adopted(pid))
                os.close(tells)


def tell(tells: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the test has forgotten it
        os.write(tells, number.to_bytes(_NUMBER_BYTES, "little", signed=True))


def _launch(order: Order, output: int) -> None:
    os.setsid()
    os.chdir(order.directory)
    _forget_the_parent(output, ())
    _becomes(order.environment)
    vars(importlib.import_module("deploy.launch.local.launcher"))["ChildProcess"] = child
    _run(order.command)


# ---- in a launcher


class ForkedChild(WatchedProcess):
    """Started at construction, in a process group of its own, as a ChildProcess is."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        on_line: Callable[[str], None],
        on_exit: Callable[[int], None],
        pass_fds: tuple[int, ...] = (),
        *,
        defers_interrupt: bool = False,
    ) -> None:
        reading, writing = os.pipe()

        def become() -> None:
            if defers_interrupt:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            os.setpgid(0, 0)
            _forget_the_parent(writing, pass_fds)
            _becomes(environment)
            _run(command[command.index("-m") + 1 :])

        try:
            pid = _fork(become)
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        with contextlib.suppress(OSError):  # it was quicker, or has ended
            os.setpgid(pid, pid)
        output = cast("BinaryIO", os.fdopen(reading, "rb", buffering=0))
        super().__init__(pid, output, functools.partial(reap_adopted, pid), on_line, on_exit)


def child(command: Sequence[str], *arguments: Any, **named: Any) -> WatchedProcess:
    """What a launcher starts in place of a ChildProcess."""
    is_fork = command[command.index("-m") + 1] in OF_LAUNCHERS
    return (ForkedChild if is_fork else ChildProcess)(command, *arguments, **named)


# ---- in a fork


def _fork(becomes: Callable[[], None]) -> int:
    """The pid of a process that runs `becomes` and ends."""
    with _without_signals():
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _let_the_parents_be()
    if not pid:
        _end(_status_of(becomes))
    return pid


@contextlib.contextmanager
def _without_signals() -> Iterator[None]:
    """None comes while it is not clear whose it would be."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _let_the_parents_be() -> None:
    """What the parent has open or made is the parent's to close and to remove, here by no collector and at no end."""
    gc.freeze()
    atexit.unregister(_dismiss)
    for finalizer in cast("Any", weakref.finalize)._registry.values():
        finalizer.atexit = False


def _forget_the_parent(output: int, kept: tuple[int, ...]) -> None:
    """Standard descriptors of its own, and none of the parent's but `kept`."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    begin = 3
    for descriptor in sorted(kept):
        os.closerange(begin, descriptor)
        os.set_inheritable(descriptor, True)
        begin = descriptor + 1
    os.closerange(begin, os.sysconf("SC_OPEN_MAX"))
    sys.stdin = sys.__stdin__ = _standard(0, "r")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _standard(1, "w")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _standard(2, "w", "backslashreplace")  # type: ignore[misc]


def _standard(descriptor: int, mode: str, errors: str = "strict") -> io.TextIOWrapper:
    file = os.fdopen(descriptor, mode, 1, encoding="utf-8", errors=errors, closefd=False)
    return cast("io.TextIOWrapper", file)


def _becomes(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _run(command: Sequence[str]) -> None:
    """A module with its arguments, as `python -m` runs it."""
    _name_in_proc([sys.executable, "-P", "-m", *command])
    sys.argv = list(command)
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def _name_in_proc(words: Sequence[str]) -> None:
    """The command line that others see, over the one that this process was begun with."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    begin, end = int(fields[_ARGUMENTS_BEGIN]), int(fields[_ARGUMENTS_END])
    line = b"".join(os.fsencode(word) + b"\0" for word in words)[: end - begin]
    ctypes.memmove(begin, line.ljust(end - begin, b"\0"), end - begin)


def _status_of(becomes: Callable[[], None]) -> int:
    """The exit status that an interpreter would have."""
    try:
        becomes()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - whatever it was, an interpreter tells it and ends
        traceback.print_exc()
        return 1
    return 0


def _end(status: int) -> NoReturn:
    """As an interpreter ends, but for the frames of the parent that this process still has."""
    cast("Any", threading)._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    load()
    with socket.socket(fileno=int(sys.argv[1])) as orders:
        serve(orders)


if __name__ == "__main__":
    main()

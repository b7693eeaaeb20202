"""The coordinator's side of `grammar_main`. Owns the process: it starts when it is first needed, and is ended when a
constraint takes too long."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from deploy.config.topology import child_environment
from protocol.errors import GrammarsUnavailable

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Sequence

    from protocol.constraints import Constraint

log = logging.getLogger(__name__)
COMPILE_S = 2.0
START_S = 60.0
CROWDED_S = 20.0
"""The longest that a constraint waits for a process that would run if others left it a core."""
LINE_BYTES = 1 << 20
NOT_STOPPED = ("R", "D", "S")
"""States of a process that nobody stopped: it would run, its memory is being read, or it waits for the next constraint."""
WORKED_SHARE = 0.5
"""Of that time the process must have worked before the constraint is blamed: what passes takes far less (grammar_main)."""
ENDED_BY_OTHERS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that no constraint causes by itself, unless the system is out of memory."""
TOO_LONG = f"it takes more than {COMPILE_S:g} s to compile"
COSTS_TOO_MUCH = "it cannot be compiled with the memory there is"


class _DisturbedError(Exception):
    """Whoever did it, the constraint may be good. `is_over`: the process ended by itself or by others, and did not only stand."""

    def __init__(self, told: str, *, is_over: bool) -> None:
        super().__init__(told)
        self.is_over = is_over


class GrammarProcess:
    """Satisfies coordinator.edge.answers.grammar_check.Compiles. At most one process; whoever asks waits for it alone."""

    def __init__(self, directory: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._arguments = (str(directory), str(vocab_size), str(list(eos_token_ids)))
        self._process: Process | None = None
        self.worked_s = 0.0

    async def refusal(self, constraint: Constraint) -> str | None:
        """See Compiles. What ends the process, by time or memory, is refused; what others stopped or ended is tried once
        more. GrammarsUnavailable when the process does not start, or does not get to run."""
        try:
            return await self._tried(constraint)
        except _DisturbedError as error:
            log.warning("the process that tries grammars %s; starting another", error)
        try:
            return await self._tried(constraint)
        except _DisturbedError as error:
            if error.is_over:
                return self._condemned(constraint)
            raise GrammarsUnavailable(str(error)) from error

    async def _tried(self, constraint: Constraint) -> str | None:
        process = await self._started()
        assert process.stdin is not None
        before_s, self.worked_s = _worked_s(process), COMPILE_S
        try:
            process.stdin.write(msgspec.json.encode(constraint) + b"\n")
            told = await self._answered(process, before_s)
            self.worked_s = _worked_s(process) - before_s
            return told
        except TimeoutError:
            has_worked = _has_worked(process, before_s)
            await self.close()
            if has_worked:
                return TOO_LONG
            told = f"did not get to run within {COMPILE_S:g} s"
            raise _DisturbedError(told, is_over=False) from None
        except (ConnectionError, EOFError):
            status = await process.wait()
            await self.close()
            if -status in ENDED_BY_OTHERS:
                told = f"was ended by {signal.Signals(-status).name}"
                raise _DisturbedError(told, is_over=True) from None
            return self._condemned(constraint)
        except asyncio.CancelledError:  # its answer would be taken for the next one's
            await self.close()
            raise

    async def _answered(self, process: Process, before_s: float) -> str | None:
        """TimeoutError after COMPILE_S; later only where others have the cores: another process would get none either. One
        that sleeps has answered, and it was we who did not get to read it."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + CROWDED_S
        while True:
            try:
                return await asyncio.wait_for(_answer(process), COMPILE_S)
            except TimeoutError:
                waits = _state(process) in NOT_STOPPED and not _has_worked(process, before_s)
                if not waits or loop.time() > until_s:
                    raise

    def _condemned(self, constraint: Constraint) -> str:
        log.warning("a constraint ended the process that tried it: %s", constraint.key)
        return COSTS_TOO_MUCH

    async def _started(self) -> Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        command = (sys.executable, "-m", "deploy.processes.grammar_main", *self._arguments)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                "--parent",
                str(os.getpid()),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=LINE_BYTES,
                env=child_environment(),
            )
        except OSError as error:
            log.warning("the process that tries grammars cannot be started: %s", error)
            raise GrammarsUnavailable(f"cannot be started: {error.strerror}") from error
        try:
            await asyncio.wait_for(_answer(self._process), START_S)
        except TimeoutError as error:
            await self.close()
            raise GrammarsUnavailable(f"was not ready within {START_S:g} s") from error
        except EOFError as error:
            status = await self._process.wait()
            raise GrammarsUnavailable(f"ended at its start, with status {status}") from error
        except asyncio.CancelledError:
            await self.close()
            raise
        return self._process

    async def close(self) -> None:
        """End the process; the next constraint starts another."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()


async def _answer(process: Process) -> str | None:
    """One line; EOFError when the process is gone."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    answer: str | None = msgspec.json.decode(line, type=str | None)
    return answer


def _has_worked(process: Process, before_s: float) -> bool:
    """Whether it had the time that a constraint may take."""
    return _worked_s(process) - before_s >= COMPILE_S * WORKED_SHARE


def _worked_s(process: Process) -> float:
    """Processor time of all its threads so far; 0 when it is gone."""
    user, system = _stat(process)[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _state(process: Process) -> str:
    """R: it runs, or would if it got a core."""
    return _stat(process)[0]


def _stat(process: Process) -> list[str]:
    """The fields of /proc/PID/stat after the name; of one that is gone, as of a dead one."""
    try:
        told = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ["X", *["0"] * 13]
    return told.rpartition(")")[2].split()

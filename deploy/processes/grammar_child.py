"""The coordinator's side of `grammar_main`. Owns the process: it starts when it is first needed, and is ended when a
constraint takes too long."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING

import msgspec

from deploy.config.topology import child_environment
from protocol.errors import GrammarsUnavailable

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Sequence
    from pathlib import Path

    from protocol.constraints import Constraint

log = logging.getLogger(__name__)
COMPILE_S = 2.0
START_S = 60.0
LINE_BYTES = 1 << 20
TOO_LONG = f"it takes more than {COMPILE_S:g} s to compile"
COSTS_TOO_MUCH = "it cannot be compiled with the memory there is"


class GrammarProcess:
    """Satisfies coordinator.edge.answers.grammar_check.Compiles. At most one process; whoever asks waits for it alone."""

    def __init__(self, directory: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._arguments = (str(directory), str(vocab_size), str(list(eos_token_ids)))
        self._process: Process | None = None

    async def refusal(self, constraint: Constraint) -> str | None:
        """See Compiles. What ends the process, by time or memory, is refused. GrammarsUnavailable when it does not start."""
        process = await self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(constraint) + b"\n")
            return await asyncio.wait_for(_answer(process), COMPILE_S)
        except TimeoutError:
            await self.close()
            return TOO_LONG
        except (ConnectionError, EOFError):
            log.warning("a constraint ended the process that tried it: %s", constraint.key)
            await self.close()
            return COSTS_TOO_MUCH
        except asyncio.CancelledError:  # its answer would be taken for the next one's
            await self.close()
            raise

    async def _started(self) -> Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "deploy.processes.grammar_main",
            *self._arguments,
            "--parent",
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
            env=child_environment(),
        )
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

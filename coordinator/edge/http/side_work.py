"""What must not run on the event loop, or not at once. Owns the threads, and how many pieces of work hold the interpreter.

Python code in a thread takes turns with the loop, so that one such thread makes the loop a little later, and ten make
it ten times as late: reading and checking large bodies has one thread, and gives way each millisecond. Tokenizing
leaves the interpreter to others and has two.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")
TOKENIZING_THREADS = 2
MAX_INLINE_TOLD = 4096
"""Of so many tokens and alternatives to them an answer is spelled at once."""
SWITCH_INTERVAL_S = 0.001
"""How long a thread keeps the interpreter that the loop waits for, unless one call of C does."""


async def others_turn() -> None:
    """Everybody who waits for the loop has it once."""
    passed = asyncio.Event()
    asyncio.get_running_loop().call_soon(passed.set)
    await passed.wait()


class SideWork:
    """Threads beside one event loop; they start when they are first needed, or all at once by `start`."""

    def __init__(self) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._python = ThreadPoolExecutor(1, "bodies")
        self._tokenizing = ThreadPoolExecutor(TOKENIZING_THREADS, "tokenizing")

    def start(self) -> None:
        """Start every thread: later there may be no memory for one, and its work would fail for that alone. RuntimeError where
        there is none now."""
        for pool, size in ((self._python, 1), (self._tokenizing, TOKENIZING_THREADS)):
            all_run = threading.Barrier(size + 1)
            try:
                for _ in range(size):
                    pool.submit(all_run.wait)
            except RuntimeError:
                all_run.abort()
                raise
            all_run.wait()

    async def run(self, work: Callable[[], Result]) -> Result:
        """What `work` returns or raises; for code that holds the interpreter."""
        return await asyncio.get_running_loop().run_in_executor(self._python, work)

    async def spell(self, num_told: int, say: Callable[[], Result]) -> Result:
        """The same, but at once where an answer has told little; `say` repeats what it told."""
        return say() if num_told <= MAX_INLINE_TOLD else await self.run(say)

    async def tokenize(self, work: Callable[[], Result]) -> Result:
        """The same for calls that let other threads run."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, work)

"""What must not run on the event loop, or not at once. Owns the threads, and how many pieces of work hold the interpreter.

Python code in a thread takes turns with the loop, so that one such thread makes the loop a little later, and ten make
it ten times as late: reading and checking large bodies has one thread, and gives way each millisecond. Tokenizing
leaves the interpreter to others and has two. What belongs to the loop, and is many small things, is done in slices: of all
such work one slice runs between two looks at everybody else.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from protocol.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Item = TypeVar("Item")
Result = TypeVar("Result")
TOKENIZING_THREADS = 2
MAX_INLINE_TOLD = 4096
"""Of so many tokens and alternatives to them an answer is spelled at once."""
MOST_AT_ONCE = 64
"""So many small things of a request are done at once."""
SLICE_S = 0.002
"""Of more, as many as take so long."""
SWITCH_INTERVAL_S = 0.001
"""How long a thread keeps the interpreter that the loop waits for, unless one call of C does."""


async def others_turn() -> None:
    """Everybody who waits for the loop has it once."""
    passed = asyncio.Event()
    asyncio.get_running_loop().call_soon(passed.set)
    await passed.wait()


class LoopTurns:
    """Long work of the event loop's own. Who waits for a turn has one after those who came before, and everybody else has
    the loop between any two turns."""

    def __init__(self) -> None:
        self._clock = SystemClock()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closing: set[asyncio.Task[None]] = set()

    async def turn(self) -> None:
        """Wait for one."""
        loop = asyncio.get_running_loop()
        mine = loop.create_future()
        self._waiting.append(mine)
        if len(self._waiting) == 1:
            loop.call_soon(self._next, loop)
        await mine

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            mine = self._waiting.popleft()
            if mine.done():  # it was cancelled
                continue
            mine.set_result(None)
            if self._waiting:
                loop.call_soon(self._next, loop)
            return

    async def each(self, items: Sequence[Item], do: Callable[[Item], Result]) -> list[Result]:
        """What `do` returns for each; what it raises ends it."""
        if len(items) <= MOST_AT_ONCE:
            return [do(item) for item in items]
        results: list[Result] = []
        todo = iter(items)
        while len(results) < len(items):
            await self.turn()
            end_s = self._clock.now_s() + SLICE_S
            for item in todo:
                results.append(do(item))
                if self._clock.now_s() >= end_s:
                    break
        return results

    def later(self, items: Sequence[Item], do: Callable[[Item], object]) -> None:
        """Do it to each: to the first few now, to the others when there is time, whoever waits for it or not."""
        for item in items[:MOST_AT_ONCE]:
            do(item)
        if len(items) > MOST_AT_ONCE:
            rest = asyncio.get_running_loop().create_task(self._rest(items[MOST_AT_ONCE:], do))
            self._closing.add(rest)
            rest.add_done_callback(self._closing.discard)

    async def _rest(self, items: Sequence[Item], do: Callable[[Item], object]) -> None:
        await self.each(items, do)


class SideWork:
    """Threads beside one event loop; they start when they are first needed, or all at once by `start`. `turns` are the loop's
    own."""

    def __init__(self) -> None:
        self.turns = LoopTurns()
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

"""Grammars compiled beside the engine's loop. Owns the thread, and what it made.

The coordinator has compiled every constraint before, in a process that it could end: what comes here is quick. The
library lets go of the interpreter meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from engine.grammar.cache import GrammarCache
from protocol.errors import BatonError
from worker.gate import GrammarMade

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.grammar.compiler import GrammarCompiler
    from engine.grammar.guide import CompiledGrammar, Guide
    from protocol.constraints import Constraint
    from protocol.sampling import SamplingParams

log = logging.getLogger(__name__)


class GrammarThread:
    """Satisfies worker.gate.Grammars; used by the loop's thread. `fileno` is readable while something came."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._cache = GrammarCache()
        self._made: SimpleQueue[GrammarMade] = SimpleQueue()
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._executor = ThreadPoolExecutor(1, "grammars")
        self._compiler = compiler

    def fileno(self) -> int:
        """For the loop's poll."""
        return self._reading

    def find(self, key: str) -> CompiledGrammar | None:
        """See Grammars."""
        return self._cache.get(key)

    def keep(self, key: str, grammar: CompiledGrammar) -> None:
        """See Grammars."""
        self._cache.put(key, grammar)

    def start(self, constraint: Constraint) -> None:
        """See Grammars."""
        self._executor.submit(self._compile, constraint)

    def guide(self, grammar: CompiledGrammar, sampling: SamplingParams) -> Guide:
        """See Grammars."""
        return self._compiler.guide(grammar, sampling)

    def _compile(self, constraint: Constraint) -> None:
        """In the thread. Whatever goes wrong is one answer's end, and is told."""
        key = constraint.key
        try:
            made = GrammarMade(key, self._compiler.compile(constraint))
        except BatonError as error:
            made = GrammarMade(key, None, str(error))
        except Exception as error:
            log.exception("a grammar could not be compiled")
            made = GrammarMade(key, None, f"{type(error).__name__}: {error}")
        self._made.put(made)
        with contextlib.suppress(BlockingIOError):  # it is readable already
            os.write(self._writing, b"!")

    def done(self) -> Iterator[GrammarMade]:
        """What came since the last call."""
        try:
            os.read(self._reading, 4096)
        except BlockingIOError:
            return
        while True:
            try:
                yield self._made.get_nowait()
            except Empty:
                return

    def close(self) -> None:
        """Nothing is compiled any more."""
        self._executor.shutdown(wait=False, cancel_futures=True)

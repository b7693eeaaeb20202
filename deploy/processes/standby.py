"""A worker before anybody needs it: what it loads, and how it is told whom to be. Owns both.

It has imported everything, mapped the weights, touched them in a step, and read the vocabulary; it has no KV pool, no
socket and no name. One line on a pipe, the path of a spec, makes it that worker; the end of the pipe ends it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from protocol.specs import WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

FEW_BLOCKS = 4
"""A pool that a step of a few tokens fits, given back before it waits."""
_LINE_BYTES = 1 << 12


def stand_by(template: WorkerSpec, orders_fd: int) -> WorkerSpec | None:
    """Load what every worker like `template` needs, and wait; the spec of the one to be, None for none."""
    if template.cores:
        keep_to(template.cores)
    warm(template)
    path = _line(orders_fd)
    os.close(orders_fd)
    if not path:
        return None
    return msgspec.json.decode(Path(path).read_bytes(), type=WorkerSpec)


def warm(template: WorkerSpec) -> None:
    """ConfigError says what cannot work, as a worker's start does."""
    # Importing is most of it, and must be after the pinning.
    from worker.engine_start import MOCK_BACKEND, start_engine
    from worker.wiring import vocabulary_of

    if template.backend == MOCK_BACKEND:
        return
    from engine.runner import ModelRunner

    engine = start_engine(msgspec.structs.replace(template, num_blocks=FEW_BLOCKS, lent_cores=()))
    vocabulary_of(template)
    assert isinstance(engine.runner, ModelRunner)
    engine.runner.close()
    engine.runner.kv_memory.close()


def keep_to(cores: tuple[int, ...]) -> None:
    """Every thread of this process: torch has started its own already."""
    for thread in _threads():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(thread, cores)


def _threads() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc/self/task").iterdir())


def _line(descriptor: int) -> str:
    """Up to a newline; empty when nobody wrote one."""
    read = b""
    while not read.endswith(b"\n"):
        piece = os.read(descriptor, _LINE_BYTES)
        if not piece:
            return ""
        read += piece
    return read.decode().rstrip("\n")

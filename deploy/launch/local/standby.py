"""Processes that have loaded everything and are no worker yet. Owns how many there are, and who gets one.

    fill ──► warms ──► waits ──take(spec)──► is that worker          ended before: again, after 0.2, 1, 2, 4 … 60 s

One is taken at any start of a worker like it: an order of more, a wake, or what ended. It may be taken while it still
warms: that is quicker than to begin.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec

from launching.backoff import Backoff
from protocol.roles import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from deploy.launch.child_process import ChildProcess
    from protocol.clock import Clock
    from protocol.specs import WorkerSpec

REFILL_S = 5.0
"""After one was taken: the worker that it became has its cores for itself at first."""


class Nursery(Protocol):
    """What a launcher does for standbys."""

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Call `action` in that time, unless everything ends before."""
        ...

    def begin(
        self, template: WorkerSpec, orders_fd: int, on_exit: Callable[[int], None]
    ) -> ChildProcess:
        """A process that warms for workers like `template` and reads whom to be; OSError when it cannot be started."""
        ...


@dataclass(eq=False)
class _Standby:
    template: WorkerSpec
    orders_fd: int
    started_s: float
    process: ChildProcess | None = field(default=None)


class Standbys:
    """Invariant: at most `count` wait for workers of one model, each with its end of a pipe open here."""

    def __init__(self, count: int, nursery: Nursery, clock: Clock) -> None:
        self._count, self._nursery, self._clock = count, nursery, clock
        self._waiting: list[_Standby] = []
        self._templates: tuple[WorkerSpec, ...] = ()
        self._backoff = Backoff()

    @property
    def processes(self) -> list[ChildProcess]:
        """Those that wait or warm."""
        return [each.process for each in self._waiting if each.process is not None]

    def fill(self, templates: Iterable[WorkerSpec]) -> None:
        """From now on have as many as there should be, for workers like each of these."""
        self._templates = tuple(templates)
        self._refill()

    def take(self, spec: WorkerSpec, path: Path) -> ChildProcess | None:
        """A process that becomes the worker whose spec lies at `path`; None when there is none for it."""
        if not spec.role.computes:
            return None
        for standby in list(self._waiting):
            if _likeness(standby.template) != _likeness(spec) or standby.process is None:
                continue
            self._waiting.remove(standby)
            self._nursery.later(REFILL_S, self._refill)
            try:
                os.write(standby.orders_fd, f"{path}\n".encode())
            except BrokenPipeError:  # it ended, and nobody has looked yet
                continue
            finally:
                os.close(standby.orders_fd)
            return standby.process
        return None

    def close(self) -> None:
        """No more of them: those that wait end by the end of their pipe."""
        self._count = 0
        for standby in self._waiting:
            os.close(standby.orders_fd)
        self._waiting.clear()

    def _refill(self) -> None:
        for template in self._templates:
            while sum(each.template == template for each in self._waiting) < self._count:
                if not self._begin(template):
                    return

    def _begin(self, template: WorkerSpec) -> bool:
        """OSError, for want of descriptors or memory, is tried again like what ended."""
        try:
            reading, writing = os.pipe()
        except OSError:
            self._again(0.0)
            return False
        standby = _Standby(template, writing, self._clock.now_s())
        self._waiting.append(standby)
        try:
            standby.process = self._nursery.begin(template, reading, lambda _: self._ended(standby))
        except OSError:
            self._ended(standby)
        finally:
            os.close(reading)
        return standby.process is not None

    def _ended(self, standby: _Standby) -> None:
        """One that was not taken."""
        if standby not in self._waiting:
            return
        self._waiting.remove(standby)
        os.close(standby.orders_fd)
        self._again(self._clock.now_s() - standby.started_s)

    def _again(self, lived_s: float) -> None:
        self._nursery.later(self._backoff.next_s(lived_s), self._refill)


def _likeness(spec: WorkerSpec) -> WorkerSpec:
    """What was loaded, and what a process has from its start: all else is told when it is taken."""
    return msgspec.structs.replace(
        spec,
        worker_id="",
        role=Role.DECODE,
        cores=(),
        lent_cores=(),
        num_blocks=0,
        kv_cache_bytes=0,
        generation=0,
    )

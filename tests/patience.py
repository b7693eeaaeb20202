"""Real time in tests: how long to wait for what takes moments, and what a promise in seconds means on a slow or busy machine.

    an event               until(condition, what)             however long the machine takes, within PATIENCE_S
    a promise in seconds   in_time(attempt, promised_s)       of a few attempts the quickest, in this machine's seconds

Other work only adds time: what the code itself does wrong is in every attempt.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 90.0
"""What takes moments has happened long before; what never happens fails its test, and does not hang it."""
ATTEMPTS = 3
_ROUNDS, _USUAL_S = 1_000_000, 0.031
"""What so many rounds of a loop take where the promises were made, with nothing beside them."""


def until(
    condition: Callable[[], Any], what: str, seconds: float = PATIENCE_S, every_s: float = 0.05
) -> float:
    """Wait for a condition of the outside world; how long it took."""
    started_s, pause = time.monotonic(), threading.Event()
    while not condition():
        assert time.monotonic() - started_s < seconds, f"{what} did not happen"
        pause.wait(every_s)
    return time.monotonic() - started_s


def slowness() -> float:
    """How many times longer work takes here and now than where the promises were made; never below 1."""
    started_s, total = time.perf_counter(), 0
    for number in range(_ROUNDS):
        total += number * number
    return max(1.0, (time.perf_counter() - started_s) / _USUAL_S)


def in_time(attempt: Callable[[], float], promised_s: float, attempts: int = ATTEMPTS) -> None:
    """One of some attempts, each of which tells how long it took, keeps the promise."""
    seen = []
    for _ in range(attempts):
        before = slowness()
        took_s = attempt()
        allowed_s = promised_s * max(before, slowness())
        if took_s <= allowed_s:
            return
        seen.append(f"{took_s:.3f} s, allowed {allowed_s:.3f} s")
    raise AssertionError("; ".join(seen))


def is_readable(descriptor: int, seconds: float) -> bool:
    """Whether it becomes so in time; of any number, as a process that has run thousands of tests may have open."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(1000 * seconds))

"""What the client itself costs, and whether it was the bottleneck. Owns those figures and the verdict.

A figure that the client delayed says nothing of the server: it is shown and kept, marked unreliable (exit status 3).
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.serve.answer import Outcome
    from benchmarks.serve.connection import Lags

SCHEDSTAT = Path("/proc/self/schedstat")


@dataclass(frozen=True)
class Limits:
    """Above these a result is unreliable. `share` is of one core, `lag_ms` the 99th percentile of a read's delay."""

    share: float = 0.8
    lag_ms: float = 25.0


@dataclass(frozen=True)
class Overhead:
    """One run's costs. Lags are from the kernel's receive to our timestamp; None where it gave no timestamps.

    `cpu_share` is CPU time over wall time; `wait_share` is time that the client could have run and did not get
    a core. `late_ms` is how long after its due time a request was sent, for no fault of --max-concurrency.
    """

    cpu_share: float
    wait_share: float | None
    median_lag_ms: float | None
    p99_lag_ms: float | None
    max_lag_ms: float | None
    p99_late_ms: float
    cpu_ms_per_request: float

    def verdict(self, limits: Limits) -> str:
        """Why the figures cannot be believed; empty when they can."""
        waited = max(self.p99_lag_ms or 0.0, self.p99_late_ms)
        if self.cpu_share > limits.share:
            reason = f"used {self.cpu_share:.0%} of a core (limit {limits.share:.0%}, --max-client-share)"
        elif waited > limits.lag_ms:
            reason = (
                f"read or sent {waited:.1f} ms late, 99th percentile (limit {limits.lag_ms:g} ms, "
                "--max-client-lag)"
            )
        else:
            return ""
        return (
            f"the client was the bottleneck, it {reason}; send less at once (--max-concurrency, "
            "--request-rate), split the load over several clients, give the client a core of its "
            "own, or raise the limit"
        )


class OverheadMeter:
    """Watches this process from `start` to `stop`; no garbage is collected in between."""

    def __init__(self, lags: Lags) -> None:
        self._lags = lags
        self._first_lag = 0
        self._start_s = self._start_cpu_s = self._start_wait_s = 0.0

    def start(self) -> None:
        """The run begins now."""
        gc.collect()
        gc.freeze()
        gc.disable()
        self._first_lag = len(self._lags.seconds)
        self._start_wait_s = run_queue_wait_s() or 0.0
        self._start_s, self._start_cpu_s = time.perf_counter(), time.process_time()

    def stop(self, outcomes: Sequence[Outcome]) -> Overhead:
        """The run has ended."""
        wall_s = max(time.perf_counter() - self._start_s, 1e-9)
        cpu_s = time.process_time() - self._start_cpu_s
        waited_s = run_queue_wait_s()
        gc.enable()
        gc.unfreeze()
        lags_ms = np.array(self._lags.seconds[self._first_lag :]) * 1e3
        late_ms = np.array([outcome.late_s for outcome in outcomes] or [0.0]) * 1e3
        some = len(lags_ms) > 0
        return Overhead(
            cpu_share=cpu_s / wall_s,
            wait_share=None if waited_s is None else (waited_s - self._start_wait_s) / wall_s,
            median_lag_ms=float(np.median(lags_ms)) if some else None,
            p99_lag_ms=float(np.percentile(lags_ms, 99)) if some else None,
            max_lag_ms=float(lags_ms.max()) if some else None,
            p99_late_ms=float(np.percentile(late_ms, 99)),
            cpu_ms_per_request=cpu_s * 1e3 / max(len(outcomes), 1),
        )


def run_queue_wait_s() -> float | None:
    """Seconds this thread has waited for a core so far; None where the kernel does not count it."""
    if not SCHEDSTAT.is_file():
        return None
    return int(SCHEDSTAT.read_text(encoding="ascii").split()[1]) * 1e-9

"""The live line of a run on a terminal. Owns what it shows; drawing costs the client and is therefore rare."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

if TYPE_CHECKING:
    from types import TracebackType

    from benchmarks.serve.answer import Outcome

EVERY_S = 0.5


class LiveProgress:
    """A watcher of `OpenLoop`; silent when standard error is no terminal, or `quiet`."""

    def __init__(self, name: str, total: int, *, quiet: bool) -> None:
        console = Console(stderr=True)
        self._shown = console.is_terminal and not quiet
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            auto_refresh=False,
            disable=not self._shown,
            transient=True,
        )
        self._task = self._progress.add_task(name, total=total, figures="")
        self._start_s = time.perf_counter()
        self._sent = self._ended = self._failed = 0
        self._ttfts_ms: list[float] = []
        self._timer: asyncio.TimerHandle | None = None

    def sent(self) -> None:
        """One more is under way."""
        self._sent += 1

    def ended(self, outcome: Outcome) -> None:
        """One more is done."""
        self._ended += 1
        if outcome.is_good:
            self._ttfts_ms.append(outcome.ttft_s * 1e3)
        else:
            self._failed += 1

    def figures(self) -> str:
        """What stands behind the bar."""
        rate = self._ended / max(time.perf_counter() - self._start_s, 1e-9)
        parts = [f"{self._sent - self._ended} running", f"{rate:.2f} req/s"]
        if self._ttfts_ms:
            median, tail = np.percentile(self._ttfts_ms, (50, 99))
            parts.append(f"TTFT p50 {median:.0f} p99 {tail:.0f} ms")
        if self._failed:
            parts.append(f"{self._failed} failed")
        return " · ".join(parts)

    def _draw(self) -> None:
        self._progress.update(self._task, completed=self._ended, figures=self.figures())
        self._progress.refresh()
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._draw)

    def __enter__(self) -> LiveProgress:
        self._progress.start()
        self._start_s = time.perf_counter()
        if self._shown:
            self._draw()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._progress.stop()

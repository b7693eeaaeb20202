"""Log lines to stderr without waiting for whoever reads it. Owns the queue between, and what is said when it was full.

A pipe that nobody empties blocks its writer for ever, and a log line is written on the event loop, or between two
steps of an engine. So a thread writes, and what it cannot write in time is dropped, counted and told afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading

CAPACITY = 2000
LAST_WORDS_S = 1.0


class QueuedLines(logging.Handler):
    """Never blocks; `dropped` lines had no room."""

    def __init__(self, descriptor: int, capacity: int = CAPACITY) -> None:
        super().__init__()
        self.dropped = 0
        self._descriptor = descriptor
        self._told = 0
        self._lines: queue.Queue[bytes | None] = queue.Queue(capacity)
        self._writer = threading.Thread(target=self._write_all, name="log lines", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Format now, since arguments may change; write later."""
        try:
            self._lines.put_nowait(f"{self.format(record)}\n".encode(errors="replace"))
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Give what is queued a moment."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
            self._writer.join(LAST_WORDS_S)
        super().close()

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._write(line)
                if self.dropped > self._told:
                    self._tell_dropped()
            except OSError:  # nobody can read any more: there is no place left to say so
                self.dropped += 1

    def _tell_dropped(self) -> None:
        missing, self._told = self.dropped - self._told, self.dropped
        self._write(f"{missing} log lines were dropped: nobody read stderr in time\n".encode())

    def _write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._descriptor, line) :]

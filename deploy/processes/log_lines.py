"""Text to stderr without waiting for whoever reads it. Owns the queue between, what is said when it was full, and how a record
becomes a line.

A pipe that nobody empties blocks its writer for ever, and a log line is written on the event loop, or between two
steps of an engine. So a thread writes, and what it cannot write in time is dropped, counted and told afterwards.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import queue
import threading
from typing import Any

CAPACITY = 2000
LAST_WORDS_S = 1.0
UNREAD = "nobody read stderr in time"
_DIRECTIONS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ENDS_OF_LINES = (0x2028, 0x2029)
_CONTROLS = (*range(0x20), *range(0x7F, 0xA0))
ESCAPES = {code: f"\\x{code:02x}" for code in _CONTROLS} | {
    code: f"\\u{code:04x}" for code in (*_ENDS_OF_LINES, *_DIRECTIONS)
}
"""What is no text, and how it is shown."""
_ESCAPES_IN_TRACES = {code: told for code, told in ESCAPES.items() if code != ord("\n")}
_IN_TRACE = "  "


class QueuedWriter:
    """Never blocks; `dropped` pieces had no room."""

    def __init__(self, descriptor: int, capacity: int = CAPACITY) -> None:
        self.dropped = 0
        self._descriptor = descriptor
        self._told = 0
        self._reason = UNREAD
        self._pieces: queue.Queue[bytes | None] = queue.Queue(capacity)
        self._thread = threading.Thread(target=self._write_all, name="log lines", daemon=True)
        self._thread.start()

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return self._pieces.empty()

    @property
    def is_running(self) -> bool:
        """Whether more may still be written."""
        return self._thread.is_alive()

    def put(self, piece: bytes) -> None:
        """Write it later, or never."""
        try:
            self._pieces.put_nowait(piece)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Give what is queued a moment."""
        with contextlib.suppress(queue.Full):
            self._pieces.put_nowait(None)
            self._thread.join(LAST_WORDS_S)

    def _write_all(self) -> None:
        while (piece := self._pieces.get()) is not None:
            try:
                self._write(piece)
                if self.dropped > self._told:
                    self._tell_dropped()
            except OSError as error:  # a full disk, or nobody there any more: it is said when there is a place for it
                self._reason = f"stderr could not be written ({error.strerror})"
                self.dropped += 1

    def _tell_dropped(self) -> None:
        dropped, reason = self.dropped, self._reason
        self._write(f"{dropped - self._told} log lines were dropped: {reason}\n".encode())
        self._told, self._reason = dropped, UNREAD

    def _write(self, piece: bytes) -> None:
        while piece:
            piece = piece[os.write(self._descriptor, piece) :]


class LineFormatter(logging.Formatter):
    """A line a record, prefixed with the process's name, and its traceback below, further in: what a client calls a model is
    in messages, and must neither look like a line of its own nor drive the terminal that shows it."""

    def __init__(self, name: str) -> None:
        told = name.replace("%", "%%")
        super().__init__(f"%(asctime)s %(levelname)-7s {told} %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """With the escapes of what is no text."""
        return super().formatMessage(record).translate(ESCAPES)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """A traceback has lines, and so may have the message of what was raised."""
        told = super().formatException(ei).translate(_ESCAPES_IN_TRACES)
        return _IN_TRACE + told.replace("\n", f"\n{_IN_TRACE}")


class QueuedLines(logging.Handler):
    """Log records, a line each."""

    def __init__(self, descriptor: int, capacity: int = CAPACITY) -> None:
        super().__init__()
        self.writer = QueuedWriter(descriptor, capacity)

    @property
    def dropped(self) -> int:
        """Lines without room."""
        return self.writer.dropped

    def emit(self, record: logging.LogRecord) -> None:
        """Format now, since arguments may change; write later."""
        self.writer.put(f"{self.format(record)}\n".encode(errors="replace"))

    def close(self) -> None:
        """Give what is queued a moment."""
        self.writer.close()
        super().close()


class QueuedText(io.TextIOBase):
    """A text file over a descriptor, for whoever prints: a terminal if the descriptor is one."""

    encoding = "utf-8"

    def __init__(self, descriptor: int, capacity: int = CAPACITY) -> None:
        super().__init__()
        self.writer = QueuedWriter(descriptor, capacity)
        self._descriptor = descriptor

    def writable(self) -> bool:
        """It is for nothing else."""
        return True

    def isatty(self) -> bool:
        """Whether a person reads it."""
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        """For the terminal's width."""
        return self._descriptor

    def write(self, text: str) -> int:
        """Later, or never."""
        self.writer.put(text.encode(errors="replace"))
        return len(text)

    def close(self) -> None:
        """Give what is queued a moment; the descriptor stays open."""
        if not self.closed:
            self.writer.close()
        super().close()

"""What a pull is, and how it ended. Owns the two records and their counters; pure."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol.errors import TransferError
    from protocol.messages.records import PeerAddress

Key = tuple[str, int]
"""(request id, attempt)."""


@dataclass(frozen=True, slots=True)
class PullJob:
    """Read `source_ids` of one remote pool into `target_ids`; block i must hash to `digests[i]`
    under `headers[i]`. `timeout_s` is what the request's deadline leaves, from the read's start."""

    key: Key
    source: PeerAddress
    lease_id: str
    source_ids: Sequence[int]
    target_ids: Sequence[int]
    headers: Sequence[bytes]
    digests: Sequence[bytes]
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class PullDone:
    """How a job ended. The targets hold proven bytes exactly when `error` is None.

    `read_s + digest_s` is the time from the job's turn to its end; `road` the transport that it took.
    """

    job: PullJob
    error: TransferError | None
    num_bytes: int = 0
    read_s: float = 0.0
    digest_s: float = 0.0
    road: str = ""


@dataclass(slots=True)
class PullCounters:
    """Totals since start, for metrics. Read from anywhere, written under the lock."""

    transfers: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    digest_s: float = 0.0
    failures: int = 0
    failures_by_cause: dict[str, int] = field(default_factory=dict)
    bytes_by_road: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, done: PullDone) -> None:
        """Count one result."""
        with self._lock:
            if done.error is None:
                self.transfers += 1
                self.num_bytes += done.num_bytes
                self.seconds += done.read_s + done.digest_s
                self.digest_s += done.digest_s
                so_far = self.bytes_by_road.get(done.road, 0)
                self.bytes_by_road[done.road] = so_far + done.num_bytes
            else:
                cause = type(done.error).__name__
                self.failures += 1
                self.failures_by_cause[cause] = self.failures_by_cause.get(cause, 0) + 1

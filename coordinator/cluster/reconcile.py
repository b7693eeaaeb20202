"""What a worker has against what it should have. Owns the comparison at every heartbeat: finds lost orders and lost outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.messages.orders import Ping

if TYPE_CHECKING:
    from coordinator.cluster.books import Books
    from coordinator.cluster.control_socket import Outgoing
    from coordinator.cluster.dispatch import Dispatch
    from coordinator.cluster.live_requests import LiveRequests
    from coordinator.cluster.registry import WorkerRecord
    from protocol.messages.reports import Heartbeat

MAX_STRIKES = 4
"""Heartbeats in a row that must miss a request before it is replayed. Those that waited while we were stopped are one:
what was said beside them is not read yet."""


class Reconciler:
    """Outputs travel on another connection than heartbeats, so a difference counts only when it lasts for several
    heartbeats, each of which was heard while we listened."""

    def __init__(
        self, books: Books, requests: LiveRequests, dispatch: Dispatch, outgoing: Outgoing
    ) -> None:
        self._books = books
        self._requests = requests
        self._dispatch = dispatch
        self._outgoing = outgoing
        self._counted: set[str] = set()

    def heard_all(self) -> None:
        """Nothing waits to be read: the next heartbeat of each worker counts again."""
        self._counted.clear()

    def compare(self, worker: WorkerRecord, heartbeat: Heartbeat) -> None:
        """Replay what it should have and has not; abort what it has and should not."""
        self._replay_missed(worker.worker_id, set(heartbeat.live), heartbeat.heard)
        for request_id, attempt in heartbeat.live:
            known = self._requests.get(request_id)
            if known is not None and known.is_left_to(worker.worker_id, attempt):
                continue
            if known is None or not known.is_current(attempt):
                reason = "the coordinator does not know this attempt"
                self._dispatch.abort_at(worker, request_id, attempt, reason)
        self._outgoing.send_order(worker, Ping(incarnation=worker.incarnation))

    def _replay_missed(self, worker_id: str, here: set[tuple[str, int]], heard: int) -> None:
        """What has blocks reserved there and that the worker should have and has not, too often in a row."""
        counts = worker_id not in self._counted
        self._counted.add(worker_id)
        lives = map(self._requests.get, self._books.ledger.request_ids(worker_id))
        for life in list(filter(None, lives)):
            if (life.request_id, life.attempt) in here or not life.is_missed_by(worker_id, heard):
                life.forgive(worker_id)
            elif counts and life.strike(worker_id) >= MAX_STRIKES:
                self._requests.replay(life, f"{worker_id} does not know the request")

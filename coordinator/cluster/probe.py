"""Proof that a worker serves before it gets work. Owns the probes in flight; decides starting → ready.

A probe is a real two-token request of one block and a bit, sent through a fixed route: with a
counterpart of the other role through a handoff, else alone. It opens the connection between the
pair, so the first client does not pay for it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from coordinator.cluster.registry import WorkerState
from coordinator.cluster.router import Route
from coordinator.cluster.service_api import Generation
from protocol.roles import Role
from protocol.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.cluster.books import Books
    from coordinator.cluster.live_requests import LiveRequests
    from coordinator.cluster.readiness import Readiness
    from coordinator.cluster.registry import WorkerRecord

log = logging.getLogger(__name__)
PROBE_DEADLINE_S = 30.0
PROBE_TOKEN_ID = 1


class Probes(Protocol):
    """Who decides that a worker serves."""

    def tick(self) -> None:
        """Look after starting workers."""
        ...

    def forget(self, worker_id: str) -> None:
        """The worker is lost."""
        ...


class ProbeBook:
    """At most one probe at a time for each starting worker."""

    def __init__(
        self,
        books: Books,
        requests: LiveRequests,
        readiness: Readiness,
        new_request_id: Callable[[], str],
    ) -> None:
        self._new_request_id = new_request_id
        self._books = books
        self._requests = requests
        self._readiness = readiness
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def forget(self, worker_id: str) -> None:
        """The worker is lost; its probe ends by itself."""
        self._tasks.pop(worker_id, None)

    def tick(self) -> None:
        """Probe every starting worker that is not being probed."""
        for record in self._books.registry:
            task = self._tasks.get(record.worker_id)
            if record.state is WorkerState.STARTING and (task is None or task.done()):
                self._tasks[record.worker_id] = asyncio.get_running_loop().create_task(
                    self._probe(record)
                )

    async def _probe(self, record: WorkerRecord) -> None:
        if self._books.registry.get(record.worker_id) is not record:
            return  # it joined and was lost in one breath: nobody would tell its probe
        route = self._route(record)
        tokens, error = 0, None
        async for event in self._requests.submit_to(route, self._generation()):
            tokens += len(event.tokens)
            error = event.error
        if error is not None or tokens == 0:
            log.warning("probe of %s failed (%s); trying again", record.worker_id, error)
            return
        for worker in (route.prefill, route.decode):
            if worker is not None and worker.passed_probe():
                log.info("worker %s is ready", worker.worker_id)
        self._requests.pump()
        self._readiness.changed()

    def _route(self, record: WorkerRecord) -> Route:
        """With a counterpart of the other role when there is one, ready ones first; else alone."""
        others = [w for w in self._books.registry if w.role is record.role.other]
        others.sort(key=lambda w: not w.is_ready)
        if not others:
            return Route(None, record)
        if record.role is Role.DECODE:
            return Route(others[0], record)
        return Route(record, others[0])

    def _generation(self) -> Generation:
        return Generation(
            request_id=self._new_request_id(),
            prompt_token_ids=[PROBE_TOKEN_ID] * (self._books.ledger.block_size + 2),
            sampling=SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True),
            deadline_in_s=PROBE_DEADLINE_S,
            cache_salt="baton-probe",
        )

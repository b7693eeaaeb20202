"""Proof that a worker serves before it gets work. Owns the probes in flight; decides starting → ready.

A probe is a real two-token request of one block and a bit, sent through a fixed route: with a
counterpart of the other role through a handoff, else alone. It opens the connection between the
pair, so the first client does not pay for it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from coordinator.cluster.lifecycle import RequestLife
from coordinator.cluster.registry import WorkerState
from coordinator.cluster.router import Route
from coordinator.cluster.service_api import Generation
from protocol.ids import new_request_id
from protocol.roles import Role
from protocol.sampling import SamplingParams

if TYPE_CHECKING:
    from coordinator.cluster.registry import WorkerRecord
    from coordinator.cluster.service import ClusterService
    from coordinator.cluster.stream import EventStream

log = logging.getLogger(__name__)
PROBE_DEADLINE_S = 30.0
PROBE_TOKEN_ID = 1


class ProbeBook:
    """At most one probe at a time for each starting worker."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def forget(self, worker_id: str) -> None:
        """The worker is lost; its probe ends by itself."""
        self._tasks.pop(worker_id, None)

    def tick(self, service: ClusterService) -> None:
        """Probe every starting worker that is not being probed."""
        for record in service.registry:
            task = self._tasks.get(record.worker_id)
            if record.state is WorkerState.STARTING and (task is None or task.done()):
                self._tasks[record.worker_id] = asyncio.get_running_loop().create_task(
                    self._probe(service, record)
                )

    async def _probe(self, service: ClusterService, record: WorkerRecord) -> None:
        route = self._route(service, record)
        stream = self._start(service, route)
        tokens, error = 0, None
        async for event in stream:
            tokens += len(event.tokens)
            error = event.error
        if error is not None or tokens == 0:
            log.warning("probe of %s failed (%s); trying again", record.worker_id, error)
            return
        for worker in (route.prefill, route.decode):
            if worker is not None and worker.state is WorkerState.STARTING:
                worker.state = WorkerState.READY
                log.info("worker %s is ready", worker.worker_id)
        service.pump()
        service.on_ready_change()

    def _route(self, service: ClusterService, record: WorkerRecord) -> Route:
        """With a counterpart of the other role when there is one, ready ones first; else alone."""
        others = [w for w in service.registry if w.role != record.role]
        others.sort(key=lambda w: not w.is_ready)
        if not others:
            return Route(None, record)
        if record.role == Role.DECODE:
            return Route(others[0], record)
        return Route(record, others[0])

    def _start(self, service: ClusterService, route: Route) -> EventStream:
        length = service.ledger.block_size + 2
        generation = Generation(
            request_id=new_request_id(),
            prompt_token_ids=[PROBE_TOKEN_ID] * length,
            sampling=SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True),
            deadline_in_s=PROBE_DEADLINE_S,
            cache_salt="baton-probe",
        )
        now_s = service.clock.now_s()
        life = RequestLife(generation, now_s, now_s + PROBE_DEADLINE_S)
        return service.probe(life, route)

"""The agent's side of one seat. Owns the actor's handle: makes it, asks it for news, makes it again."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import msgspec
import ray
from ray._private.state import state
from ray.exceptions import ActorDiedError, RayError

from deploy.launch.ray.patience import ends_within, happens_within
from deploy.launch.ray.records import (
    Ended,
    Failed,
    Gone,
    KeeperNews,
    NodeFacts,
    Placed,
    Run,
    Unseated,
    Waiting,
)
from deploy.launch.ray.seat import Seat
from launching.backoff import Backoff
from launching.roster import COORDINATOR

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploy.launch.ray.records import AgentReport, Demand

log = logging.getLogger(__name__)
HEAD = "node:__internal_head__"
PATIENCE_S = 5.0
"""A seat that has no node for this long says so."""
NEWS = msgspec.json.Decoder(list[KeeperNews])


class SeatHolder:
    """One seat from Sit to Leave. Ray starts the actor again wherever there is room, for ever."""

    def __init__(
        self, name: str, launch: str, demand: Demand, report: Callable[[AgentReport], None]
    ) -> None:
        self.name, self.demand = name, demand
        self.node_id: str | None = None
        self._launch, self._report = launch, report
        self._actor: Any = None
        self._run: Run | None = None
        self._run_changed = asyncio.Event()
        self._runs = False
        self._leaving = asyncio.Event()
        self._backoff = Backoff()

    async def hold(self) -> None:
        """Until `leave`: place, run, pass on; and again when the actor was lost."""
        while not self._leaving.is_set():
            try:
                await self._once()
                await self._pause()
            except Exception as error:
                if not isinstance(error, RayError):
                    log.exception("the seat of %s failed; it is looked for again", self.name)
                if isinstance(error, ActorDiedError):
                    self._actor = None
                if self._leaving.is_set():
                    return
                self.node_id = None
                self._report(Unseated(name=self.name, reason=_first_line(error)))
                await self._pause()

    async def _pause(self) -> None:
        await happens_within(self._leaving, self._backoff.next_s(0.0))

    def run(self, order: Run) -> None:
        """What is to run here, or to run from its next start on."""
        self._run = order
        self._run_changed.set()

    def looks_for_other_than(self, demand: Demand) -> bool:
        """Whether it has no node yet, and asks for something else."""
        return self.node_id is None and demand != self.demand

    async def give_up(self) -> None:
        """Look no more; nothing runs there."""
        self._leaving.set()
        self._run_changed.set()
        if self._actor is not None:
            ray.kill(self._actor)

    async def leave(self, timeout_s: float) -> bool:
        """End the process, and give the place back; False when it may be there still."""
        self._leaving.set()
        self._run_changed.set()
        if self._actor is not None:
            if self.node_id is not None:
                await self._end(timeout_s)
            ray.kill(self._actor)
        self._report(Gone(name=self.name))
        return not self._runs

    async def _end(self, timeout_s: float) -> None:
        try:
            await asyncio.wait_for(_wait(self._actor.end.remote(timeout_s)), timeout_s + 6.0)
            self._runs = False
        except (RayError, TimeoutError) as error:
            log.warning("%s did not end as told: %s", self.name, _first_line(error))

    async def _once(self) -> None:
        if self._actor is None:
            self._actor = make_actor(self.name, self._launch, self.demand)
        self._run = None
        self._run_changed.clear()
        facts = with_resources(msgspec.json.decode(await self._placed(), type=NodeFacts))
        if self._leaving.is_set():
            return
        self.node_id = facts.node_id
        self._report(Placed(name=self.name, node=facts))
        await self._obey()
        news = asyncio.ensure_future(_wait(self._actor.news.remote()))
        while not self._leaving.is_set():
            changed = asyncio.ensure_future(self._run_changed.wait())
            await asyncio.wait([news, changed], return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            if news.done():
                if self._pass_on(news.result()):
                    return
                news = asyncio.ensure_future(_wait(self._actor.news.remote()))
            if self._run_changed.is_set():
                await self._obey()
        news.cancel()

    async def _placed(self) -> bytes:
        """The actor's first answer; says once that there is no room yet, as soon as that is known."""
        answer = asyncio.ensure_future(_wait(self._actor.facts.remote()))
        looking = asyncio.ensure_future(asyncio.to_thread(has_room, self.demand))
        is_known = await ends_within(looking, PATIENCE_S) and looking.exception() is None
        if not is_known or looking.result():
            await asyncio.wait([answer], timeout=PATIENCE_S)
        if not answer.done() and self.demand.bundle():
            self._report(Waiting(name=self.name, demand=self.demand))
        facts: bytes = await answer
        return facts

    async def _obey(self) -> None:
        """Hand the owner's order on, once it is there."""
        await self._run_changed.wait()
        self._run_changed.clear()
        if self._run is None or self._leaving.is_set():
            return
        refusal = await _wait(self._actor.run.remote(msgspec.json.encode(self._run)))
        if refusal:
            self._report(Failed(name=self.name, reason=refusal))
        else:
            self._runs = True

    def _pass_on(self, news: bytes) -> bool:
        """Tell the owner; True when the process and its keeper are over."""
        is_over = False
        for record in NEWS.decode(news):
            self._report(record)
            is_over = is_over or (isinstance(record, Ended) and record.restart_in_s is None)
        self._runs = not is_over
        return is_over


async def _wait(reference: Any) -> Any:
    return await reference


def make_actor(name: str, launch: str, demand: Demand) -> Any:
    """A seat that Ray starts again without end; the coordinator's is on the head node."""
    resources = dict(demand.resources)
    if name == COORDINATOR:
        resources[HEAD] = 0.001
    actor = ray.remote(Seat).options(
        num_cpus=demand.num_cpus,
        num_gpus=demand.num_gpus,
        resources=resources,
        max_restarts=-1,
        max_task_retries=0,
        scheduling_strategy="SPREAD",
    )
    return actor.remote(name, launch)


def has_room(demand: Demand) -> bool:
    """Whether a node has all of it left now, as far as Ray knows."""
    nodes: dict[str, dict[str, float]] = state.available_resources_per_node()
    needed = demand.bundle()
    return any(
        all(left.get(name, 0.0) >= amount for name, amount in needed.items())
        for left in nodes.values()
    )


def with_resources(facts: NodeFacts) -> NodeFacts:
    """With what that node offers to Ray."""
    for node in ray.nodes():
        if node["NodeID"] == facts.node_id:
            return msgspec.structs.replace(facts, resources=node["Resources"])
    return facts


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

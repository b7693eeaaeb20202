"""The Ray driver of a cluster: a process of its own, because Ray ends a driver that loses it.

usage: python -P -m deploy.launch.ray.agent ADDRESS LAUNCH --channel FD --parent PID

Owns the connection to Ray and the seats; decides nothing. The owner says what there should be; it is told where
that was placed and what became of it, when Ray is away, and which nodes will be taken away.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys
from typing import TYPE_CHECKING, Any

import ray

from deploy.launch.ray.cluster_watch import ClusterWatch, look
from deploy.launch.ray.lines import Lines
from deploy.launch.ray.records import (
    Attached,
    Finish,
    Leave,
    OwnerOrder,
    Run,
    Sit,
)
from deploy.launch.ray.seat_holder import SeatHolder
from deploy.processes.child import follow_parent, harden, log_to_stderr
from launching.roster import COORDINATOR
from protocol.clock import SystemClock

if TYPE_CHECKING:
    from deploy.launch.ray.records import AgentReport

log = logging.getLogger(__name__)
FINISH_S = 7.0
"""Beyond the children's own time, how long the end may take."""


class Agent:
    """Obeys the owner until Finish, or until the owner is gone."""

    def __init__(self, launch: str, owner: Lines[OwnerOrder]) -> None:
        self._launch, self._owner = launch, owner
        self._holders: dict[str, SeatHolder] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._shutdown_timeout_s = 2.0

    def report(self, report: AgentReport) -> None:
        """Tell the owner."""
        self._owner.send(report)

    async def run(self, attached: Attached) -> bool:
        """Until the end; whether nothing is left of what was placed."""
        self.report(attached)
        watch = ClusterWatch(self.report, self._seats_by_node, SystemClock())
        watching = asyncio.create_task(watch.run())
        try:
            while (order := await self._owner.receive()) is not None:
                if isinstance(order, Finish):
                    return await self._finish()
                self._obey(order)
        finally:
            watching.cancel()
        return False

    def _obey(self, order: OwnerOrder) -> None:
        match order:
            case Sit():
                before = self._holders.get(order.name)
                if before is not None and before.looks_for_other_than(order.demand):
                    self._spawn(self._holders.pop(order.name).give_up())
                if order.name not in self._holders:
                    holder = SeatHolder(order.name, self._launch, order.demand, self.report)
                    self._holders[order.name] = holder
                    self._spawn(holder.hold())
                    self._ask_for_nodes()
            case Run():
                self._shutdown_timeout_s = order.shutdown_timeout_s
                if order.name in self._holders:
                    self._holders[order.name].run(order)
            case Leave():
                if order.name in self._holders:
                    self._spawn(self._holders.pop(order.name).leave(self._shutdown_timeout_s))
                    self._ask_for_nodes()
            case Finish():
                pass

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the agent failed", exc_info=error)

    def _seats_by_node(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, holder in self._holders.items():
            if holder.node_id is not None and name != COORDINATOR:
                found.setdefault(holder.node_id, []).append(name)
        return found

    def _ask_for_nodes(self) -> None:
        bundles = [h.demand.bundle() for n, h in self._holders.items() if n != COORDINATOR]
        self._spawn(_request([bundle for bundle in bundles if bundle]))

    async def _finish(self) -> bool:
        """End everything; False when something may be left."""
        leaving = [holder.leave(self._shutdown_timeout_s) for holder in self._holders.values()]
        work = asyncio.gather(*leaving, _request([]))
        done, _ = await asyncio.wait([work], timeout=self._shutdown_timeout_s + FINISH_S)
        return bool(done) and work.exception() is None and False not in work.result()


async def _request(bundles: list[dict[str, float]]) -> None:
    """What the autoscaler should make room for, until it is told otherwise."""
    from ray.autoscaler.sdk import request_resources  # noqa: PLC0415 - only now is there a cluster

    try:
        await asyncio.to_thread(request_resources, bundles=bundles)
    except Exception as error:  # noqa: BLE001 - Ray has no root for these; a cluster without autoscaler is no fault
        log.warning("could not ask Ray for nodes: %s", error)


def is_reachable(address: str, timeout_s: float = 3.0) -> bool:
    """Whether somebody listens there: Ray's own client would wait much longer."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
    except OSError:
        return False
    return True


def attach(address: str) -> Attached:
    """Join Ray at `address`; exits with a sentence when that cannot be."""
    if not is_reachable(address):
        raise SystemExit(f"no Ray answers at {address}")
    try:
        ray.init(
            address=address,
            namespace="baton",
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, a person must read it
        raise SystemExit(f"could not join Ray at {address}: {str(error).splitlines()[0]}") from None
    return look(address)


def main() -> int:
    """Exit status 0 when everything was ended as told; another when something may be left, or Ray is lost."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("launch")
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--parent", type=int, default=0)
    arguments = parser.parse_args()
    follow_parent(arguments.parent)
    harden()
    log_to_stderr("ray", "warning")
    attached = attach(arguments.address)
    is_clean = asyncio.run(_serve(arguments.channel, arguments.launch, attached))
    ray.shutdown()
    return 0 if is_clean else 1


async def _serve(channel: int, launch: str, attached: Attached) -> bool:
    owner: Lines[OwnerOrder] = await Lines.over(socket.socket(fileno=channel), OwnerOrder)
    is_clean = await Agent(launch, owner).run(attached)
    owner.close()
    return is_clean


if __name__ == "__main__":
    sys.exit(main())

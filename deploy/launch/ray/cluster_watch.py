"""Looking at Ray: is it there, which nodes are about to be taken away. Owns the questions, asked every second."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

import ray
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._private.state import state

from deploy.launch.ray.patience import ends_within, happens_within
from deploy.launch.ray.records import Attached, Away, Back, Leaving, Offered
from protocol.clock import wall_time_s

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploy.launch.ray.records import AgentReport
    from protocol.clock import Clock

log = logging.getLogger(__name__)
LOOK_EVERY_S = 1.0
SILENCE_S = 3.0
SLEPT_S = 2 * SILENCE_S
"""Who is longer at a look than that did not run: nothing is concluded from it."""
NO_DEADLINE_S = 30.0
"""What a node that is drained without a deadline is believed to have left."""
HEAD = "node:__internal_head__"


class ClusterWatch:
    """Reports changes: Away, Back, what is offered, and a Leaving for every node once."""

    def __init__(
        self,
        report: Callable[[AgentReport], None],
        seats_by_node: Callable[[], dict[str, list[str]]],
        clock: Clock,
    ) -> None:
        self._report, self._seats_by_node, self._clock = report, seats_by_node, clock
        self._told: set[tuple[str, str]] = set()
        self._is_away = False
        self._offered: dict[str, float] = {}
        self._asking: asyncio.Future[tuple[dict[str, int], dict[str, float]]] | None = None

    async def run(self) -> None:
        """Until cancelled."""
        never = asyncio.Event()
        while True:
            try:
                await self._look()
            except Exception:
                log.exception("looking at Ray failed; it is tried again in %g s", LOOK_EVERY_S)
            await happens_within(never, LOOK_EVERY_S)

    async def _look(self) -> None:
        began_s = self._clock.now_s()
        if self._asking is None:
            self._asking = asyncio.ensure_future(asyncio.to_thread(ask))
        if not await ends_within(self._asking, SILENCE_S):
            self._set_away(f"its head node does not answer for {SILENCE_S:g} s")
            return
        asked, self._asking = self._asking, None
        error = asked.exception()
        if error is not None:
            if self._clock.now_s() - began_s > SLEPT_S:
                return  # the time that Ray was given was ours: asked again
            self._set_away(f"its head node does not answer: {type(error).__name__}")
            return
        if self._is_away:
            self._is_away = False
            self._report(Back())
        draining, offered = asked.result()
        self._tell_leaving(draining)
        if offered != self._offered:
            self._offered = offered
            self._report(Offered(resources=offered))

    def _set_away(self, reason: str) -> None:
        if not self._is_away:
            self._is_away = True
            self._report(Away(reason=reason))

    def _tell_leaving(self, draining: dict[str, int]) -> None:
        seats = self._seats_by_node()
        for node_id, deadline_ms in draining.items():
            new = [name for name in seats.get(node_id, []) if (node_id, name) not in self._told]
            if new:
                self._told.update((node_id, name) for name in new)
                left_s = deadline_ms / 1000 - wall_time_s() if deadline_ms else NO_DEADLINE_S
                self._report(Leaving(names=tuple(new), deadline_s=max(left_s, 0.0)))


def ask() -> tuple[dict[str, int], dict[str, float]]:
    """Which nodes will be lost, and what those that are there offer together. Blocks while the head is away."""
    return draining_nodes(), offered_by([node for node in ray.nodes() if node["Alive"]])


def offered_by(nodes: list[dict[str, Any]]) -> dict[str, float]:
    """The sum of their resources."""
    total: Counter[str] = Counter()
    for node in nodes:
        total.update(node["Resources"])
    return dict(total)


def draining_nodes() -> dict[str, int]:
    """Nodes that Ray will lose, with the instant in ms since the epoch (0: unknown). Blocks while the head is away."""
    found: dict[str, int] = state.get_draining_nodes()
    return found


def look(address: str) -> Attached:
    """What the cluster offers now."""
    nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]
    head = next((node for node in nodes if HEAD in node["Resources"]), nodes[0])
    return Attached(
        address=address,
        version=ray.__version__,
        session=ray.get_runtime_context().get_session_name(),
        head_ip=head["NodeManagerAddress"],
        num_nodes=len(nodes),
        resources=offered_by(nodes),
        has_authentication=is_token_auth_enabled(),
    )

"""Models that come and go, made true. Owns who waits for one and the loads under way; what follows from what is decided in
`coordinator.cluster.residency`.

    enter ─► Residency ─► Load ─► Cluster.load ─► the launcher's workers, proven ─► loaded ─► Admit ─► who waits goes on
                       ├► Unload ─► Cluster.unload ─► no worker is left ─► gone
                       └► Shrink, Grow ─► Scaler ─► other workers ─► takes
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from coordinator.cluster.residency import Admit, Fail, Grow, Load, Presence, Shrink, Ticket, Unload
from protocol.errors import BatonError, ModelUnavailable, NoLauncher, PoolConflict
from protocol.periodic import Periodic
from protocol.roles import COMPUTING, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from coordinator.cluster.cluster import Cluster
    from coordinator.cluster.residency import Action, Residency, Resident
    from protocol.clock import Clock

log = logging.getLogger(__name__)
LOOK_EVERY_S = 0.05
LOAD_LIMIT_S = 120.0
"""A model whose workers are not ready by then could not be loaded."""
HOLD_LIMIT_S = 300.0
"""How long a request waits for its model."""


class Residents:
    """Of each model its cluster, and the workers that it has when it is in. `shapes` are those; `worker_bytes` is what each takes
    that is there beside them, or is not."""

    def __init__(
        self,
        residency: Residency,
        clusters: Mapping[str, Cluster],
        shapes: Mapping[str, Mapping[Role, int]],
        clock: Clock,
        worker_bytes: Mapping[str, int] | None = None,
    ) -> None:
        self._residency = residency
        self._worker_bytes = worker_bytes or {}
        self._clusters, self._shapes, self._clock = clusters, shapes, clock
        self._gates: dict[Ticket, asyncio.Future[None]] = {}
        self._begun_s: dict[str, float] = {}
        self._wanted: dict[str, Mapping[Role, int]] = {}
        self._asked: set[str] = set()
        self._failing: dict[str, str] = {}
        self._looks = Periodic("looking after models", LOOK_EVERY_S, self.look)

    def start(self) -> None:
        """Look after loads and expiries on the running loop."""
        self._looks.start()

    def close(self) -> None:
        """Look no more."""
        self._looks.close()

    # ---- requests

    async def enter(
        self, name: str, keep_alive_s: float | None = None, *, is_order: bool = False
    ) -> Callable[[], None]:
        """Wait until the model is in; the returned call says that it is not needed any more. `keep_alive_s` below zero
        means for ever, None nothing. Raises Overloaded or ModelUnavailable, and InvalidRequest where only orders load models and
        this is none; a caller that is cancelled frees its place."""
        word = None if keep_alive_s is None or keep_alive_s < 0 else keep_alive_s
        now_s = self._clock.now_s()
        ticket = Ticket(name, now_s, word, keep_alive_s is not None, is_order=is_order)
        gate = self._gates[ticket] = asyncio.get_running_loop().create_future()
        try:
            self._find()
            self._do(self._residency.ask(ticket, now_s))
            async with asyncio.timeout(HOLD_LIMIT_S):
                await gate
        except TimeoutError:
            self.leave(ticket)
            told = f"it was not in memory within {HOLD_LIMIT_S:g} s"
            raise ModelUnavailable(name, told, 1.0) from None
        except BaseException:
            self.leave(ticket)
            raise
        finally:
            self._gates.pop(ticket, None)
        return partial(self.leave, ticket)

    def leave(self, ticket: Ticket) -> None:
        """See Residency."""
        self._do(self._residency.leave(ticket, self._clock.now_s()))

    async def load(self, name: str, keep_alive_s: float | None = None) -> None:
        """Bring a model in, and wait for it; raises what `enter` raises."""
        (await self.enter(name, keep_alive_s, is_order=True))()

    def unload(self, name: str) -> None:
        """Take it out as soon as nobody uses it."""
        self._find()
        self._do(self._residency.send_away(name, self._clock.now_s()))

    # ---- what is seen

    def view(self, name: str) -> dict[str, Any]:
        """Of one model: its state, who uses and who waits for it, what it needs, and when it goes."""
        model, now_s = self.model(name), self._clock.now_s()
        expires_s = model.expires_s
        waiting = sum(ticket.model == name for ticket in self._residency.line)
        return {
            "state": self._state(model),
            "users": model.num_users,
            "waiting": waiting,
            "needed_bytes": model.needed_bytes,
            "keep_alive_s": -1 if model.keep_alive_s is None else model.keep_alive_s,
            "expires_in_s": None if expires_s is None else max(0.0, expires_s - now_s),
            "failure": model.failed_because,
        }

    def _state(self, model: Resident) -> str:
        if model.failed_because and model.presence is Presence.OUT:
            return "failed"
        if model.presence is Presence.IN and self._clusters[model.name].is_asleep():
            return "sleeping"
        return model.presence.value

    def model(self, name: str) -> Resident:
        """What is decided of it."""
        return self._residency.models[name]

    # ---- what is done

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Load(name):
                    log.info("loading %s", name)
                    self._begun_s[name] = self._clock.now_s()
                    self._wanted[name] = self._shapes[name]
                    self._load(name)
                case Unload(name):
                    log.info("unloading %s", name)
                    self._clusters[name].unload()
                case Shrink(name):
                    self._resize(name, {role: min(1, n) for role, n in self._shapes[name].items()})
                case Grow(name):
                    self._resize(name, self._shapes[name])
                case Admit(ticket):
                    self._open(ticket, None)
                case Fail(ticket, error):
                    self._open(ticket, error)

    def _open(self, ticket: Ticket, error: Exception | None) -> None:
        gate = self._gates.get(ticket)
        if gate is None or gate.done():
            return  # its client left in this turn of the loop: who waited tells so itself
        if error is None:
            gate.set_result(None)
        else:
            gate.set_exception(error)

    def _load(self, name: str) -> None:
        try:
            self._clusters[name].load(self._shapes[name])
        except NoLauncher:  # it says hello every second
            self._asked.add(name)

    def _resize(self, name: str, shape: Mapping[Role, int]) -> None:
        wanted = {role.value: count for role, count in shape.items() if role in COMPUTING}
        log.info("%s is to have %s", name, wanted)
        try:
            self._clusters[name].scaler.scale(**wanted)
        except (
            BatonError
        ) as error:  # its pools are measured again, and what follows is decided anew
            log.warning("%s keeps its workers: %s", name, error)

    def _measure(self) -> None:
        """What the workers take that there are, and that there will be."""
        for name, each in self._worker_bytes.items():
            if self.model(name).presence is Presence.IN:
                bare = self.model(name).needed_bytes - sum(self._shapes[name].values()) * each
                here, stay = self._clusters[name].num_here(), self._clusters[name].target()
                self._residency.takes(name, bare + here * each, bare + sum(stay.values()) * each)

    def scale(
        self, name: str, prefill: int | None, decode: int | None, store: int | None
    ) -> dict[str, Any]:
        """See Scaler, of a model that is in memory. Raises PoolConflict for one that is not, and for more than there is room for."""
        self._measure()
        model, cluster, each = self.model(name), self._clusters[name], self._worker_bytes[name]
        if model.presence is not Presence.IN:
            told = f"{name} is {model.presence.value}; load it first: baton load {name}"
            raise PoolConflict(told)
        target = cluster.target()
        wanted = dict(target) | {
            role: count
            for role, count in zip(Role, (prefill, decode, store), strict=True)
            if count is not None
        }
        more = (sum(wanted.values()) - sum(target.values())) * each
        if more > self._residency.free_bytes:
            told = f"{name}: {more >> 20} MiB more are needed, and {self._residency.free_bytes >> 20} MiB of --memory-budget are free; unload a model first"
            raise PoolConflict(told)
        begun = cluster.scaler.scale(prefill, decode, store)
        self._residency.resized(name)
        self._measure()
        return begun

    def look(self) -> None:
        """Several times a second: what has come, what has gone, and what was not used for too long."""
        self._find()
        self._measure()
        for name, cluster in self._clusters.items():
            presence = self._residency.models[name].presence
            if name in self._failing:
                self._look_after_failure(name, cluster)
            elif presence is Presence.LOADING:
                self._look_after_load(name, cluster)
            elif presence is not Presence.OUT and cluster.is_empty():  # or nobody starts them again
                self._do(self._residency.gone(name, self._clock.now_s()))
        self._do(self._residency.decide(self._clock.now_s()))

    def _find(self) -> None:
        """Workers that nobody here ordered: a coordinator before this one did. Whoever starts workers says so with his first
        word, and what was asked for in vain before is decided anew, beside what is in memory."""
        for name, cluster in self._clusters.items():
            if not cluster.has_launcher():
                continue
            if name in self._asked:
                self._asked.discard(name)
                self._residency.not_begun(name)
            if self.model(name).presence is Presence.OUT and not cluster.is_empty():
                self._found(name, cluster)

    def _found(self, name: str, cluster: Cluster) -> None:
        is_coming = cluster.is_coming()
        self._residency.found(name, is_leaving=not is_coming)
        self._begun_s[name], self._wanted[name] = self._clock.now_s(), cluster.target()
        if not is_coming:
            cluster.unload()

    def _look_after_load(self, name: str, cluster: Cluster) -> None:
        now_s = self._clock.now_s()
        took_s = now_s - self._begun_s[name]
        if name in self._asked:
            return
        if cluster.has(self._wanted[name]):
            log.info("%s is loaded after %.2f s", name, took_s)
            self._do(self._residency.loaded(name, now_s))
        elif trouble := cluster.books.pools.trouble():
            self._fail(name, cluster, trouble)
        elif took_s > LOAD_LIMIT_S:
            self._fail(name, cluster, f"its workers were not ready within {LOAD_LIMIT_S:g} s")

    def _fail(self, name: str, cluster: Cluster, reason: str) -> None:
        log.warning("%s could not be loaded: %s", name, reason)
        self._failing[name] = reason
        cluster.unload()

    def _look_after_failure(self, name: str, cluster: Cluster) -> None:
        if cluster.is_empty():
            reason = self._failing.pop(name)
            self._do(self._residency.failed(name, reason, self._clock.now_s()))

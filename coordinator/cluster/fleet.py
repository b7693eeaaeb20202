"""Several models behind one control socket. Owns which of their clusters a message is for; decides nothing else.

    Hello, launcher's news ──the worker's name──┐
    reports ──the start that they speak for─────┴──► Cluster of that model ──► its Inbox

A worker's name begins with its model's key, so that no name is two models' and the launcher knows by it what to start.
Each cluster has its own registry, pools, ledger, index and planner: nothing of one model's can reach another's.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from coordinator.cluster.fleet_view import merged_audits, merged_views
from protocol.errors import InvalidRequest, WorkerNotFound
from protocol.ids import key_of
from protocol.messages.launcher import (
    LauncherGoodbye,
    LauncherHello,
    NodeLeaving,
    ScaleRefused,
    WorkerExited,
)
from protocol.messages.orders import Refuse
from protocol.messages.reports import Goodbye, Hello

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from coordinator.cluster.cluster import Cluster
    from coordinator.cluster.registry import WorkerRecord
    from coordinator.cluster.scaling import Scaler
    from protocol.messages.orders import CoordinatorMessage
    from protocol.messages.reports import WorkerMessage
    from protocol.roles import Role

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """One model: its workers must have weights of that hash, where it is known."""

    key: str
    cluster: Cluster
    weights: str | None = None

    @property
    def name(self) -> str:
        """What answers call the model."""
        return self.cluster.settings.model_name


class Fleet:
    """All models of one coordinator; of one alone it says what that says. Operators see it as one Service. Where models come
    and go, `state_of` says of each how it is, `scale` changes its pools, and none need be here to serve."""

    def __init__(
        self,
        members: Sequence[Member],
        send: Callable[[bytes, CoordinatorMessage], bool],
        state_of: Callable[[str], dict[str, Any]] | None = None,
        scale: Callable[..., dict[str, Any]] | None = None,
    ) -> None:
        self.members = tuple(members)
        self._by_key = {member.key: member for member in members}
        assert len(self._by_key) == len(self.members), "keys must differ"
        self._send = send
        self._state_of, self._scale = state_of, scale
        self._were_ready = False
        self._rollouts: Callable[[], list[dict[str, Any]]] = list

    def __iter__(self) -> Iterator[WorkerRecord]:
        """Every model's workers."""
        for cluster in self.clusters:
            yield from cluster.books.registry

    @property
    def first(self) -> Cluster:
        """The one that answers who names no model."""
        return self.members[0].cluster

    @property
    def clusters(self) -> list[Cluster]:
        """All of them."""
        return [member.cluster for member in self.members]

    def add(self, member: Member) -> None:
        """One more, whose key no other has; it is looked after from now on."""
        assert member.key not in self._by_key, "keys must differ"
        self.members = (*self.members, member)
        self._by_key[member.key] = member
        member.cluster.start()

    def drop(self, key: str) -> None:
        """That one is here no more; it has no workers."""
        member = self._by_key.pop(key)
        self.members = tuple(each for each in self.members if each is not member)
        member.cluster.close()

    def shows(self, rollouts: Callable[[], list[dict[str, Any]]]) -> None:
        """Operators see these beside workers and requests, where there are any."""
        self._rollouts = rollouts

    # ---- what workers and the launcher say

    def on_message(self, identity: bytes, message: WorkerMessage) -> None:
        """Any message of anybody, to the model that it is for."""
        if len(self.members) == 1:
            self.first.inbox.on_message(identity, message)
            return
        match message:
            case Hello():
                self._hello(identity, message)
            case LauncherHello():
                self._launcher_said(identity, message)
            case LauncherGoodbye():
                for cluster in self.clusters:
                    cluster.inbox.on_message(identity, message)
            case NodeLeaving():
                self._node_leaves(identity, message)
            case WorkerExited() | ScaleRefused():
                self._of_worker(message.worker_id).inbox.on_message(identity, message)
            case _:
                self._speaker(message).inbox.on_message(identity, message)

    def _hello(self, identity: bytes, hello: Hello) -> None:
        member = self._by_key.get(key_of(hello.worker_id))
        refusal = None
        if member is None:
            refusal = f"{hello.worker_id} is of no model that is served here"
        elif member.weights not in (None, hello.fingerprint.weights):
            refusal = f"{hello.worker_id} has other weights than {member.name}"
        if member is None or refusal is not None:
            log.error("refused worker: %s", refusal)
            order = Refuse(incarnation=hello.incarnation, reason=refusal or "")
            self._send(identity, order)
            return
        member.cluster.inbox.on_message(identity, hello)

    def _launcher_said(self, identity: bytes, hello: LauncherHello) -> None:
        """Each hears of its own workers, and of no others."""
        for member in self.members:
            workers = hello.workers
            if workers is not None:
                workers = [one for one in workers if key_of(one.worker_id) == member.key]
            own = msgspec.structs.replace(hello, workers=workers)
            member.cluster.inbox.on_message(identity, own)

    def _node_leaves(self, identity: bytes, message: NodeLeaving) -> None:
        names: defaultdict[str, list[str]] = defaultdict(list)
        for worker_id in message.worker_ids:
            names[key_of(worker_id)].append(worker_id)
        for key, own in names.items():
            if (member := self._by_key.get(key)) is not None:
                told = msgspec.structs.replace(message, worker_ids=own)
                member.cluster.inbox.on_message(identity, told)

    def _of_worker(self, worker_id: str) -> Cluster:
        """The first stands in for a model that is not here: it does not know the worker either."""
        member = self._by_key.get(key_of(worker_id))
        return self.first if member is None else member.cluster

    def _speaker(self, message: Any) -> Cluster:
        """Who has that start registered; of a stranger, whom its name belongs to."""
        for cluster in self.clusters:
            if cluster.books.registry.by_incarnation(message.incarnation) is not None:
                return cluster
        return self._of_worker(message.worker_id) if isinstance(message, Goodbye) else self.first

    # ---- what operators see

    def is_ready(self) -> bool:
        """Whether all were once and one is: a model in trouble does not take the others from their clients."""
        if self._state_of is not None:
            return not any(cluster.readiness.is_draining for cluster in self.clusters)
        ready = [member.cluster.is_ready() for member in self._shown]
        self._were_ready = self._were_ready or all(ready)
        return self._were_ready and any(ready)

    def cluster(self) -> dict[str, Any]:
        """All together, and each under `models`; of one alone its own view."""
        rollouts = self._rollouts()
        beside = {"rollouts": rollouts} if rollouts else {}
        if len(self._shown) == 1:
            return self._shown[0].cluster.cluster() | beside
        views = {member.name: member.cluster.cluster() for member in self._shown}
        if self._state_of is not None:
            for name, view in views.items():
                view["residency"] = self._state_of(name)
        return merged_views(views) | {"ready": self.is_ready()} | beside

    @property
    def _shown(self) -> Sequence[Member]:
        """Those that have workers, or are to have some; where models come and go, all."""
        if self._state_of is not None:
            return self.members
        here = [member for member in self.members if not member.cluster.is_empty()]
        return here or self.members[:1]

    async def audit(self) -> dict[str, Any]:
        """Every account."""
        if len(self._shown) == 1:
            return await self._shown[0].cluster.audit()
        return merged_audits({m.name: await m.cluster.audit() for m in self._shown})

    def drain(self) -> dict[str, Any]:
        """See Service."""
        told = [cluster.drain() for cluster in self.clusters]
        return {"draining": True, "live": sum(one["live"] for one in told)}

    def submit_all(self, generations: Any) -> Any:
        """See Service: requests go to one model's cluster, never here."""
        return self.first.submit_all(generations)

    def member(self, model: str | None) -> Member:
        """By the name that answers give it; None means the first. Raises InvalidRequest."""
        for member in self.members:
            if model in (None, member.name):
                return member
        names = ", ".join(member.name for member in self.members)
        raise InvalidRequest(f"model: {model!r} is not here; there are {names}", "model")

    def pools_of(self, model: str | None) -> ModelPools:
        """That model's PoolControl; raises InvalidRequest."""
        member = self.member(model)
        scaler, scale = member.cluster.scaler, self._scale
        return ModelPools(scaler, scaler.scale if scale is None else partial(scale, member.name))

    def owner(self, worker_id: str) -> Cluster:
        """Whose worker that is; raises WorkerNotFound."""
        member = self._by_key.get(key_of(worker_id))
        if len(self.members) == 1:
            return self.first
        if member is None:
            keys = ", ".join(f"{key}.*" for key in self._by_key)
            raise WorkerNotFound(f"there is no worker {worker_id!r}; there are: {keys}", "worker")
        return member.cluster

    # ---- time

    def start(self) -> None:
        """Look after all of them on the running event loop."""
        for cluster in self.clusters:
            cluster.start()

    def close(self) -> None:
        """Look no more."""
        for cluster in self.clusters:
            cluster.close()

    def cancel_all(self, reason: str) -> None:
        """Every stream ends with an error that says why."""
        for cluster in self.clusters:
            cluster.requests.cancel_all(reason)


@dataclass(frozen=True, slots=True)
class ModelPools:
    """One model's, whose numbers change by `resize`: where models come and go, memory is asked for first."""

    scaler: Scaler
    resize: Callable[..., dict[str, Any]]

    def scale(
        self, prefill: int | None = None, decode: int | None = None, store: int | None = None
    ) -> dict[str, Any]:
        """See PoolControl."""
        return self.resize(prefill, decode, store)

    def drain(self, worker_id: str, within_s: float | None = None) -> dict[str, Any]:
        """See PoolControl."""
        return self.scaler.drain(worker_id, within_s)

    def set_role(self, worker_id: str, role: Role) -> dict[str, Any]:
        """See PoolControl."""
        return self.scaler.set_role(worker_id, role)


class FleetPools:
    """The pools of several models as the edge sees them (service_api.PoolControl): a worker's name says whose it is."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def scale(
        self, prefill: int | None = None, decode: int | None = None, store: int | None = None
    ) -> dict[str, Any]:
        """Of the only one; raises InvalidRequest where there are several, and whose is not said."""
        if len(self._fleet.members) == 1:
            return self._fleet.pools_of(None).scale(prefill, decode, store)
        names = ", ".join(member.name for member in self._fleet.members)
        raise InvalidRequest(f"model: name the one to scale; there are {names}", "model")

    def drain(self, worker_id: str, within_s: float | None = None) -> dict[str, Any]:
        """See PoolControl."""
        return self._fleet.owner(worker_id).scaler.drain(worker_id, within_s)

    def set_role(self, worker_id: str, role: Role) -> dict[str, Any]:
        """See PoolControl."""
        return self._fleet.owner(worker_id).scaler.set_role(worker_id, role)

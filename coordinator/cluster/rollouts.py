"""Revisions of models, made true: who answers a request, what is loaded for a rollout, and what goes after it. Owns the releases and
the starts under way; what follows from what is decided in `coordinator.cluster.release`.

    start ─► Growth.prepare ─► Growth.open: a Cluster more ─► load ─► ready ─► its weight
    promote, rollback ─► weights, at once ─► who lost drains ─► unload ─► Growth.close

A request is given its revision once, and has it until it is answered: its cluster is another's neither for a replay nor for a move.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from coordinator.cluster.release import COMING, WHOLE, Release, Standing
from coordinator.cluster.residents import LOAD_LIMIT_S
from coordinator.cluster.service_api import Chosen
from protocol.errors import (
    BatonError,
    ConfigError,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    NoLauncher,
    PoolConflict,
)
from protocol.periodic import Periodic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from coordinator.cluster.cluster import Cluster
    from coordinator.cluster.release import Revision
    from coordinator.cluster.traffic_split import Affinity
    from protocol.clock import Clock
    from protocol.roles import Role

log = logging.getLogger(__name__)
LOOK_EVERY_S = 0.05
FIRST = "initial"
"""What the revision is called of a model that was served without any."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be served as a revision: as `baton serve` names models."""

    release: Release
    revision: str
    model: str


class Growth(Protocol):
    """What must be made beside workers for a revision more. `refusal` says why this server can have none, or ""."""

    refusal: str

    async def prepare(self, source: Source) -> None:
        """The model on this host, converted; raises ConfigError."""
        ...

    async def open(self, source: Source) -> tuple[Cluster, Mapping[Role, int]]:
        """Clients can be answered by it, once it has these workers; raises ConfigError."""
        ...

    def save(self, releases: Iterable[Release]) -> bool:
        """A coordinator that starts again finds these; False while there is no launcher to tell."""
        ...

    def close(self, model: str) -> None:
        """Its workers are gone: forget what was made for it."""
        ...


@dataclass(eq=False, slots=True)
class _Load:
    """A revision that is coming. `there` is done when it is, or when nobody wants it any more."""

    cluster: Cluster
    shape: Mapping[Role, int]
    since_s: float
    there: asyncio.Future[None]
    is_ordered: bool = False


class Rollouts:
    """Of each model that has revisions its release; of each revision its cluster. `names_of` has every model's names, also of those
    without revisions."""

    def __init__(  # noqa: PLR0913 - what there is, who makes more, and who knows the time
        self,
        releases: Iterable[Release],
        clusters: Mapping[str, Cluster],
        names_of: Mapping[str, tuple[str, ...]],
        growth: Growth,
        clock: Clock,
        unload: Callable[[str], None] | None = None,
        opened: Iterable[str] = (),
    ) -> None:
        """`unload` is who takes a model out where models come and go; `opened` are models that a coordinator before this one was
        given while it ran."""
        self._releases = {release.name: release for release in releases}
        self._clusters, self._names_of = dict(clusters), names_of
        self._growth, self._clock, self._unload = growth, clock, unload
        self._looks = Periodic("looking after rollouts", LOOK_EVERY_S, self.look)
        self._starts: dict[str, asyncio.Task[None]] = {}
        self._loads: dict[Revision, _Load] = {}
        self._opened = set(opened)

    def start_looking(self) -> None:
        """Look after loads and drains on the running loop."""
        self._looks.start()

    def close(self) -> None:
        """Look no more."""
        self._looks.close()
        for start in self._starts.values():
            start.cancel()

    # ---- requests

    @property
    def is_empty(self) -> bool:
        """Whether no model has revisions."""
        return not self._releases

    def release_of(self, name: str) -> Release | None:
        """The release whose name, or one of whose revisions' names, that is."""
        head, at, revision = name.rpartition("@")
        for release in self._releases.values():
            if name in release.names or (
                at and head in release.names and revision in release.revisions
            ):
                return release
        return None

    def choose(self, name: str, asked: Affinity) -> Chosen | None:
        """The revision that answers a request to that name, in use until its `end` is called; None for a model without revisions.
        Raises ModelNotFound for one that is named and not here."""
        release = self.release_of(name)
        if release is None:
            return None
        if name in release.names:
            able = [r.name for r in release.revisions.values() if self._is_able(r)]
            revision = release.choose(asked, able)
        else:
            revision = release.find(name.rpartition("@")[2])
            self._check_here(release, revision)
        revision.begin()
        return Chosen(release.spelled(revision.name), revision.name, revision.end)

    def _is_able(self, revision: Revision) -> bool:
        cluster = self._clusters.get(revision.model)
        return cluster is not None and cluster.has_each_role()

    @staticmethod
    def _check_here(release: Release, revision: Revision) -> None:
        if revision.standing is not Standing.SERVING:
            told = f"{release.spelled(revision.name)} is {revision.standing.value}, and answers nothing"
            raise ModelNotFound(told, "model")

    def model_of(self, name: str) -> str | None:
        """What the cluster is called that answers to the name: of a model's own name that of its heaviest revision."""
        release = self.release_of(name)
        if release is None:
            return None
        if name not in release.names:
            return release.find(name.rpartition("@")[2]).model
        return release.revisions[max(release.weights, key=lambda r: release.weights[r])].model

    def public_name(self, name: str) -> str:
        """What keys, prices and clients call the model: without the revision."""
        release = self.release_of(name) or self._release_with(name)
        if release is None or name in release.names:
            return name
        return name.rpartition("@")[0] if "@" in name else release.name

    def names(self, model: str) -> tuple[str, ...] | None:
        """What clients may call that cluster's model now; None for one without revisions."""
        release = self._release_with(model)
        if release is None:
            return None
        own = [r.name for r in release.revisions.values() if r.standing is Standing.SERVING]
        return (*release.names, *map(release.spelled, own))

    def _release_with(self, model: str) -> Release | None:
        for release in self._releases.values():
            if any(revision.model == model for revision in release.revisions.values()):
                return release
        return None

    # ---- what operators ask

    async def start(self, name: str, revision: str, model: str | None, weight: float) -> None:
        """Load a revision beside those that serve, and give it its weight once it is there. Raises InvalidRequest for a model that
        cannot be served, ModelUnavailable for one that cannot be loaded: then all serve as before. A caller that leaves ends nothing."""
        if self._growth.refusal:
            raise PoolConflict(self._growth.refusal)
        release = self._release_named(name)
        called = self._checked(release, revision, model)
        new = release.start(revision, called, weight)
        self._releases[release.name] = release
        start = self._starts[called] = asyncio.create_task(self._bring(release, new, model))
        start.add_done_callback(lambda _: self._starts.pop(called))
        await asyncio.shield(start)

    def _checked(self, release: Release, revision: str, model: str | None) -> str:
        """What the cluster of that revision is called."""
        known, spelled = release.revisions.get(revision), release.spelled(revision)
        called = spelled if known is None else known.model
        if called in self._opened:
            raise PoolConflict(
                f"{spelled} is still here; wait until it is gone: baton rollout status"
            )
        is_known = called in self._clusters
        if model is None and not is_known:
            told = f"source: say what {spelled} is: a directory, a .gguf file or a hub id"
            raise InvalidRequest(told, "source")
        if model is not None and is_known:
            told = f"{spelled} came with the server: leave its source out, or choose another name"
            raise PoolConflict(told)
        return called

    def _release_named(self, name: str) -> Release:
        release = self.release_of(name)
        if release is not None and name in release.names:
            return release
        for model, names in self._names_of.items():
            if name in names and self._release_with(model) is None:
                return Release(names, {FIRST: (model, WHOLE)})
        known = ", ".join(sorted({names[0] for names in self._all_names()}))
        raise ModelNotFound(f"the model {name!r} is not served here; served: {known}", "model")

    def _all_names(self) -> list[tuple[str, ...]]:
        plain = [own for model, own in self._names_of.items() if self._release_with(model) is None]
        return [*(release.names for release in self._releases.values()), *plain]

    async def _bring(self, release: Release, revision: Revision, model: str | None) -> None:
        try:
            await self._load(release, revision, model)
        except BaseException as error:
            reason = str(error) if isinstance(error, BatonError) else type(error).__name__
            log.warning("%s is not served: %s", release.spelled(revision.name), reason)
            if revision.standing in COMING:
                release.failed(revision, reason)
            if (cluster := self._clusters.get(revision.model)) is not None:
                cluster.unload()
            if isinstance(error, ConfigError):
                raise InvalidRequest(str(error), "source") from error
            raise
        finally:
            self._save()

    async def _load(self, release: Release, revision: Revision, model: str | None) -> None:
        source = Source(release, revision.name, model or "")
        if model is not None:
            await self._growth.prepare(source)
        self._check_wanted(release, revision)
        cluster, shape = await self._growth.open(source)
        if model is not None:
            self._opened.add(revision.model)
            self._clusters[revision.model] = cluster
        self._check_wanted(release, revision)
        release.prepared(revision)
        there: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loads[revision] = _Load(cluster, shape, self._clock.now_s(), there)
        try:
            await there
        finally:
            del self._loads[revision]
        self._check_wanted(release, revision)
        release.came(revision)
        log.info("%s is here", release.spelled(revision.name))

    @staticmethod
    def _check_wanted(release: Release, revision: Revision) -> None:
        if revision.standing not in COMING:
            raise PoolConflict(
                f"{release.spelled(revision.name)} was rolled back while it was loaded"
            )

    def weigh(self, name: str, weights: Mapping[str, float]) -> None:
        """See Release."""
        self._release_named(name).weigh(weights)
        self._save()

    def promote(self, name: str, revision: str | None) -> str:
        """See Release; the revision that has everything."""
        promoted = self._release_named(name).promote(revision)
        self._save()
        return promoted.name

    def rollback(self, name: str) -> str:
        """See Release; the revision that has everything."""
        back = self._release_named(name).rollback()
        self._save()
        return back.name

    def _save(self) -> bool:
        return self._growth.save(self._releases.values())

    def view(self) -> list[dict[str, Any]]:
        """Every model that has revisions."""
        return [self._view(release) for release in self._releases.values()]

    def _view(self, release: Release) -> dict[str, Any]:
        weights = release.weights
        total = sum(weights.values())
        return {
            "model": release.name,
            "names": list(release.names),
            "stable": release.stable,
            "revisions": [
                {
                    "revision": each.name,
                    "model": each.model,
                    "state": each.standing.value,
                    "ready": each.standing is Standing.SERVING and self._is_able(each),
                    "weight": weights.get(each.name, 0.0),
                    "share": weights.get(each.name, 0.0) / total,
                    "requests": each.num_requests,
                    "live": each.num_users + self._num_live(each),
                    "failure": each.failure,
                }
                for each in release.revisions.values()
            ],
        }

    # ---- time

    def look(self) -> None:
        """Several times a second: what has come, and what has nothing left to do."""
        for revision, load in list(self._loads.items()):
            if not load.there.done():
                self._look_after(revision, load)
        for release in self._releases.values():
            self._look_after_losers(release)

    def _look_after(self, revision: Revision, load: _Load) -> None:
        if revision.standing is not Standing.LOADING:
            load.there.set_result(None)
            return
        if not load.is_ordered:
            self._order(load)
        elif load.cluster.has(load.shape):
            load.there.set_result(None)
            return
        reason = load.cluster.books.pools.trouble()
        if not reason and self._clock.now_s() - load.since_s > LOAD_LIMIT_S:
            reason = f"its workers were not ready within {LOAD_LIMIT_S:g} s"
        if reason:
            load.there.set_exception(ModelUnavailable(revision.model, reason, 1.0))

    def _order(self, load: _Load) -> None:
        """Its launcher must know what a worker of it is, before it is to start one; it says hello every second."""
        if not self._save():
            return
        try:
            load.cluster.load(load.shape)
        except NoLauncher:
            return
        load.is_ordered = True

    def _look_after_losers(self, release: Release) -> None:
        for revision in release.leaving(self._num_live):
            log.info("%s has nothing left to do, and goes", release.spelled(revision.name))
            if self._unload is not None:
                self._unload(revision.model)
                release.stays(revision)
            elif (cluster := self._clusters.get(revision.model)) is not None:
                cluster.unload()
            self._save()
        for revision in list(release.revisions.values()):
            if revision.standing in (Standing.UNLOADING, Standing.FAILED):
                self._see_off(release, revision)

    def _see_off(self, release: Release, revision: Revision) -> None:
        """Not while it is still being made: whoever does that has not heard yet that nobody wants it."""
        cluster = self._clusters.get(revision.model)
        if revision.model in self._starts or (cluster is not None and not cluster.is_empty()):
            return
        if revision.model in self._opened:
            self._opened.discard(revision.model)
            del self._clusters[revision.model]
            self._growth.close(revision.model)
        if revision.standing is Standing.UNLOADING:
            release.gone(revision)
            self._save()

    def _num_live(self, revision: Revision) -> int:
        cluster = self._clusters.get(revision.model)
        return 0 if cluster is None else len(cluster.requests)

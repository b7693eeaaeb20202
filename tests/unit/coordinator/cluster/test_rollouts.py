"""Revisions that are started, promoted and rolled back, over clusters that do at once what they are told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from coordinator.cluster.pools import MOST_DEATHS, Pools
from coordinator.cluster.residents import LOAD_LIMIT_S
from coordinator.cluster.rollouts import Rollouts, Source
from coordinator.cluster.traffic_split import Affinity
from protocol.clock import ManualClock
from protocol.errors import (
    ConfigError,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    NoLauncher,
    PoolConflict,
)
from protocol.roles import Role

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from coordinator.cluster.cluster import Cluster
    from coordinator.cluster.release import Release

SHAPE = {Role.DECODE: 1}


class ObedientCluster:
    """Its worker comes as soon as it is ordered, unless it is `late`, `refused`, or nobody starts any."""

    def __init__(self, *, is_here: bool = False) -> None:
        self.is_here, self.is_late, self.has_launcher = is_here, False, True
        self.requests: list[str] = []
        self.pools = Pools({})

    def load(self, _: Mapping[Role, int]) -> None:
        if not self.has_launcher:
            raise NoLauncher("none yet")
        self.is_here = not (self.is_late or self.pools.trouble())

    def unload(self) -> None:
        assert not self.requests
        self.is_here = False

    def has(self, _: Mapping[Role, int]) -> bool:
        return self.is_here

    def has_each_role(self) -> bool:
        return self.is_here

    def is_empty(self) -> bool:
        return not self.is_here

    @property
    def books(self) -> Any:
        return SimpleNamespace(pools=self.pools)


class Nursery:
    """Satisfies Growth: a cluster is made of nothing."""

    def __init__(self) -> None:
        self.refusal, self.trouble, self.has_launcher = "", "", True
        self.next = ObedientCluster()
        self.closed: list[str] = []
        self.saved: list[dict[str, float]] = []
        self.may_prepare, self.may_open = asyncio.Event(), asyncio.Event()
        self.may_prepare.set()
        self.may_open.set()
        self.cluster_of: dict[str, ObedientCluster] = {}

    async def prepare(self, source: Source) -> None:
        await asyncio.sleep(0)
        await self.may_prepare.wait()
        if self.trouble:
            raise ConfigError(f"model: {source.model} {self.trouble}")

    async def open(self, source: Source) -> tuple[Cluster, Mapping[Role, int]]:
        called = source.release.find(source.revision).model
        await self.may_open.wait()
        cluster = self.cluster_of.get(called, self.next)
        return cast("Cluster", cluster), SHAPE

    def save(self, releases: Iterable[Release]) -> bool:
        self.saved = [dict(release.weights) for release in releases]
        return self.has_launcher

    def close(self, model: str) -> None:
        self.closed.append(model)


class Rig:
    def __init__(self) -> None:
        self.clock, self.growth = ManualClock(), Nursery()
        self.first = ObedientCluster(is_here=True)
        self.growth.cluster_of["chat"] = self.first
        clusters = cast("Mapping[str, Cluster]", {"chat": self.first})
        names = {"chat": ("chat", "talk")}
        self.rollouts = Rollouts([], clusters, names, self.growth, self.clock)

    async def settle(self) -> None:
        for _ in range(5):
            self.rollouts.look()
            await asyncio.sleep(0)

    async def start(
        self, revision: str = "v2", source: str | None = "new", weight: float = 10
    ) -> None:
        starting = asyncio.create_task(self.rollouts.start("chat", revision, source, weight))
        await self.settle()
        await starting

    @property
    def states(self) -> dict[str, str]:
        (one,) = self.rollouts.view()
        return {each["revision"]: each["state"] for each in one["revisions"]}

    def choose(self, name: str = "chat") -> Any:
        return self.rollouts.choose(name, Affinity())


def played(scene: Callable[[Rig], Awaitable[None]]) -> Callable[[], None]:
    def test() -> None:
        async def run() -> None:
            await scene(Rig())

        asyncio.run(run())

    return test


@played
async def test_a_model_without_revisions_has_nothing_to_choose(rig: Rig) -> None:
    assert rig.choose() is None
    assert rig.rollouts.view() == []
    assert rig.rollouts.names("chat") is None


@played
async def test_a_new_revision_serves_beside_the_first_and_takes_its_place(rig: Rig) -> None:
    await rig.start()
    assert rig.states == {"initial": "serving", "v2": "serving"}
    assert rig.rollouts.names("chat@v2") == ("chat", "talk", "chat@initial", "chat@v2")
    before = rig.choose("chat@initial")
    rig.rollouts.promote("chat", None)
    assert rig.choose().name == "chat@v2"
    with pytest.raises(ModelNotFound, match="draining"):
        rig.choose("chat@initial")
    await rig.settle()
    assert rig.states["initial"] == "draining"
    before.end()
    rig.first.requests.append("still answered")
    await rig.settle()
    assert rig.states["initial"] == "draining"
    rig.first.requests.clear()
    await rig.settle()
    assert rig.states["initial"] == "unloaded"
    assert rig.first.is_empty()
    assert rig.growth.saved == [{"v2": 100.0}]
    await rig.start("initial", None, 0)
    assert rig.states["initial"] == "serving"


@played
async def test_one_that_cannot_be_prepared_or_loaded_says_why_and_changes_nothing(rig: Rig) -> None:
    rig.growth.trouble = "is torn"
    with pytest.raises(InvalidRequest, match="is torn"):
        await rig.start()
    rig.growth.trouble = ""
    pools = rig.growth.next.pools
    pools.order(Role.DECODE, 1, ())
    pools.refused("decode-0", "it does not fit", 0.0)
    with pytest.raises(ModelUnavailable, match="does not fit"):
        await rig.start()
    assert rig.states == {"initial": "serving", "v2": "failed"}
    await rig.settle()
    assert rig.growth.closed == ["chat@v2"]
    assert {rig.choose().name for _ in range(20)} == {"chat@initial"}
    rig.growth.next = ObedientCluster()
    await rig.start()
    assert rig.states["v2"] == "serving"


@played
async def test_one_whose_worker_dies_again_and_again_is_given_up_at_once_with_the_cause(
    rig: Rig,
) -> None:
    (slot,) = rig.growth.next.pools.order(Role.DECODE, 1, ())
    for _ in range(MOST_DEATHS):
        slot.died("ended with status 1: the weights are torn")
    with pytest.raises(ModelUnavailable, match="the weights are torn"):
        await asyncio.wait_for(rig.start(), 1)
    assert rig.states == {"initial": "serving", "v2": "failed"}


@played
async def test_one_whose_workers_never_come_is_given_up(rig: Rig) -> None:
    rig.growth.next.is_late = True
    starting = asyncio.create_task(rig.rollouts.start("chat", "v2", "new", 10))
    await rig.settle()
    assert rig.states["v2"] == "loading"
    rig.clock.advance(LOAD_LIMIT_S + 1)
    await rig.settle()
    with pytest.raises(ModelUnavailable, match="not ready within"):
        await starting


@played
async def test_a_launcher_that_is_away_is_waited_for(rig: Rig) -> None:
    rig.growth.has_launcher = rig.growth.next.has_launcher = False
    starting = asyncio.create_task(rig.rollouts.start("chat", "v2", "new", 10))
    await rig.settle()
    assert rig.states["v2"] == "loading"
    rig.growth.has_launcher = rig.growth.next.has_launcher = True
    await rig.settle()
    await starting
    assert rig.states["v2"] == "serving"


@played
async def test_a_rollback_while_it_is_loaded_ends_the_load(rig: Rig) -> None:
    rig.growth.next.is_late = True
    starting = asyncio.create_task(rig.rollouts.start("chat", "v2", "new", 10))
    await rig.settle()
    rig.rollouts.rollback("chat")
    await rig.settle()
    with pytest.raises(PoolConflict, match="rolled back"):
        await starting
    await rig.settle()
    assert rig.states == {"initial": "serving", "v2": "unloaded"}
    assert rig.growth.closed == ["chat@v2"]


@pytest.mark.parametrize("stage", ["may_prepare", "may_open"])
def test_a_rollback_while_it_is_made_is_the_end_of_it(stage: str) -> None:
    """However long making it takes, and whoever wants the same name again meanwhile."""

    async def scene(rig: Rig) -> None:
        gate = getattr(rig.growth, stage)
        gate.clear()
        starting = asyncio.create_task(rig.rollouts.start("chat", "v2", "new", 50))
        await rig.settle()
        rig.rollouts.rollback("chat")
        await rig.settle()
        with pytest.raises(PoolConflict, match="v2 is unloading"):
            await asyncio.wait_for(rig.rollouts.start("chat", "v2", "newer", 50), 1)
        gate.set()
        await rig.settle()
        with pytest.raises(PoolConflict, match="rolled back"):
            await asyncio.wait_for(starting, 1)
        await rig.settle()
        assert rig.states == {"initial": "serving", "v2": "unloaded"}
        assert rig.growth.saved == [{"initial": 100.0}]
        assert rig.growth.closed == ([] if stage == "may_prepare" else ["chat@v2"])
        rig.growth.next = ObedientCluster()
        await rig.start()
        await rig.settle()
        assert rig.states == {"initial": "serving", "v2": "serving"}

    played(scene)()


@played
async def test_a_client_that_leaves_ends_no_start(rig: Rig) -> None:
    starting = asyncio.create_task(rig.rollouts.start("chat", "v2", "new", 10))
    await asyncio.sleep(0)
    starting.cancel()
    await rig.settle()
    assert rig.states["v2"] == "serving"


@played
async def test_what_the_server_cannot_grow_is_refused_by_its_reason(rig: Rig) -> None:
    rig.growth.refusal = "--autoscale sizes the pools of one model"
    with pytest.raises(PoolConflict, match="--autoscale"):
        await rig.start()
    rig.growth.refusal = ""
    with pytest.raises(ModelNotFound, match="served: chat"):
        await rig.rollouts.start("none", "v2", "new", 0)
    with pytest.raises(InvalidRequest, match="source"):
        await rig.rollouts.start("chat", "v2", None, 0)
    with pytest.raises(PoolConflict, match="leave its source out"):
        await rig.rollouts.start("chat", "initial", "new", 0)

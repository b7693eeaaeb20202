"""The revisions of one model: what start, promote and roll back mean, and that no history leaves it without one that serves."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coordinator.cluster.release import COMING, Release, Revision, Standing
from coordinator.cluster.traffic_split import Affinity
from protocol.errors import BatonError, InvalidRequest, PoolConflict


def release() -> Release:
    return Release(["chat"], {"v1": ("chat@v1", 90.0)})


def canary(weight: float = 10.0) -> tuple[Release, Revision]:
    own = release()
    new = own.start("v2", "chat@v2", weight)
    own.prepared(new)
    own.came(new)
    return own, new


def idle(_: Revision) -> int:
    return 0


def test_a_new_revision_gets_its_part_once_it_is_here() -> None:
    own = release()
    new = own.start("v2", "chat@v2", 10)
    assert own.weights == {"v1": 90}
    own.prepared(new)
    own.came(new)
    assert own.weights == {"v1": 90, "v2": 10}


def test_one_that_cannot_come_leaves_all_as_it_was() -> None:
    own = release()
    new = own.start("v2", "chat@v2", 10)
    own.failed(new, "no memory")
    assert own.weights == {"v1": 90}
    assert new.failure == "no memory"
    assert own.start("v2", "chat@v2", 5).standing is Standing.PREPARING


def test_promotion_is_a_change_of_weights_and_the_loser_goes_when_nobody_uses_it() -> None:
    own, new = canary()
    old = own.choose(Affinity(), ["v1"])
    old.begin()
    assert own.promote(None) is new
    assert own.weights == {"v2": 100}
    assert own.leaving(idle) == []
    old.end()
    assert own.leaving(lambda revision: 1 if revision is old else 0) == []
    assert own.leaving(idle) == [old]
    own.gone(old)
    with pytest.raises(PoolConflict, match="start it again"):
        own.rollback()


def test_a_rollback_before_the_loser_is_gone_takes_no_load() -> None:
    own, _ = canary()
    own.promote("v2")
    assert own.rollback().name == "v1"
    assert own.weights == {"v1": 100}
    assert own.stable == "v1"
    assert own.leaving(idle) == [own.find("v2")]


def test_a_rollback_ends_a_canary_also_one_that_is_still_coming() -> None:
    own, new = canary()
    own.rollback()
    assert own.weights == {"v1": 100}
    assert new.standing is Standing.DRAINING
    own = release()
    coming = own.start("v2", "chat@v2", 10)
    own.rollback()
    assert coming.standing is Standing.DRAINING


def test_what_cannot_be_is_refused_and_changes_nothing() -> None:
    own, _ = canary()
    with pytest.raises(InvalidRequest, match="it has: v1, v2"):
        own.weigh({"v9": 1})
    with pytest.raises(InvalidRequest, match="more than 0"):
        own.weigh({"v1": 0})
    with pytest.raises(PoolConflict, match="another name"):
        own.start("v2", "chat@v2", 1)
    coming = own.start("v3", "chat@v3", 1)
    with pytest.raises(PoolConflict, match="is preparing"):
        own.promote("v3")
    with pytest.raises(PoolConflict, match="wait for it"):
        own.start("v4", "chat@v4", 1)
    assert own.weights == {"v1": 90, "v2": 10}
    assert coming.standing is Standing.PREPARING


def test_a_coordinator_that_starts_again_waits_for_nothing_that_was_coming() -> None:
    own = Release(
        ["chat"],
        {"v1": ("chat@v1", 100), "v2": ("chat@v2", 0)},
        {"v1": Standing.SERVING, "v2": Standing.LOADING},
    )
    assert own.find("v2").standing is Standing.DRAINING


class Operators(RuleBasedStateMachine):
    """Anything that operators, loads and requests do, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.release = release()
        self.users: list[Revision] = []
        self.count = 1

    def tried(self, name: str, *arguments: object) -> None:
        before = dict(self.release.weights)
        try:
            getattr(self.release, name)(*arguments)
        except BatonError:
            assert self.release.weights == before

    @rule(weight=st.sampled_from([0, 10, 50, 100]))
    def start(self, weight: float) -> None:
        self.count += 1
        self.tried("start", f"v{self.count}", f"chat@v{self.count}", weight)

    @precondition(lambda self: self.coming())
    @rule(ends_well=st.booleans())
    def comes(self, ends_well: bool) -> None:
        revision = self.coming()[0]
        if not ends_well:
            self.release.failed(revision, "torn")
        elif revision.standing is Standing.PREPARING:
            self.release.prepared(revision)
        else:
            self.release.came(revision)

    def coming(self) -> list[Revision]:
        return [r for r in self.release.revisions.values() if r.standing in COMING]

    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        self.tried("promote", data.draw(st.sampled_from([None, *self.release.revisions])))

    @rule()
    def rollback(self) -> None:
        self.tried("rollback")

    @rule(data=st.data())
    def weigh(self, data: st.DataObject) -> None:
        names = st.sampled_from([*self.release.revisions])
        self.tried("weigh", data.draw(st.dictionaries(names, st.integers(0, 9), max_size=3)))

    @rule(key=st.integers(0, 9))
    def ask(self, key: int) -> None:
        revision = self.release.choose(Affinity(str(key)), [*self.release.revisions])
        assert self.release.weights[revision.name] > 0
        revision.begin()
        self.users.append(revision)

    @precondition(lambda self: self.users)
    @rule()
    def answered(self) -> None:
        self.users.pop(0).end()

    @rule()
    def look(self) -> None:
        for revision in self.release.leaving(idle):
            assert revision not in self.users
            self.release.gone(revision)

    @invariant()
    def somebody_serves(self) -> None:
        weights = self.release.weights
        assert weights
        assert {self.release.find(n).standing for n in weights} == {Standing.SERVING}
        assert self.release.stable in self.release.revisions


Operators.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestOperators = Operators.TestCase

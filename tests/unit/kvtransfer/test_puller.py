"""The puller with roads that do as the test says: order, failure, fallback, cancelling, interrupting."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import zmq

from engine.kv.pool_memory import KvMemory
from kvtransfer.promises.proofs import block_digest
from kvtransfer.pulling.puller import RECONNECT_WITHIN_S, PullDone, Puller, PullJob
from kvtransfer.transport import ignore_landed
from protocol.clock import ManualClock
from protocol.errors import DigestMismatch, LayoutMismatch, LeaseExpired, PeerLost, TransferError
from protocol.messages.records import PeerAddress
from tests.patience import PATIENCE_S, is_readable

BLOCK = b"\x05" * 64


class FakeLink:
    """Writes BLOCK; does `act` of its road first."""

    def __init__(self, road, memory):
        self.name = road.name
        self.road = road
        self.memory = memory
        self.is_closed = False
        self.interrupted = threading.Event()

    def read(self, lease_id, source_ids, target_ids, timeout_s, landed=ignore_landed):
        assert not self.is_closed
        self.road.reads.append((self, timeout_s))
        self.road.began.set()
        if self.road.acts:
            self.road.acts.pop(0)(self)
        for position, target in enumerate(target_ids[: len(target_ids) - self.road.leaves_out]):
            self.memory.block(target)[:] = self.road.block
            landed(position, position + 1)

    def confirm(self, lease_id, source_ids, timeout_s):
        if self.road.confirm_error is not None:
            raise self.road.confirm_error

    def interrupt(self):
        self.interrupted.set()

    def close(self):
        self.is_closed = True


class FakeRoad:
    def __init__(self, name, memory):
        self.name = name
        self.memory = memory
        self.block = BLOCK
        self.acts = []
        self.reads = []
        self.connects = []
        self.connect_error = None
        self.confirm_error = None
        self.is_closed = False
        self.leaves_out = 0
        self.began = threading.Event()

    def connect(self, address, incarnation, timeout_s):
        self.connects.append((address, incarnation))
        if self.connect_error is not None:
            raise self.connect_error
        return FakeLink(self, self.memory)

    def close(self):
        self.is_closed = True


def fail(error):
    def act(link):
        raise error

    return act


class Rig:
    def __init__(self):
        self.memory = KvMemory(8, 64)
        self.fast, self.slow = FakeRoad("fast", self.memory), FakeRoad("slow", self.memory)
        roads: Any = {"fast": self.fast, "slow": self.slow}
        self.clock = ManualClock()
        self.puller = Puller(self.memory, roads, self.clock)

    def job(self, name="p", incarnation="1", key=("r", 0), roads=("fast", "slow"), **changes):
        source = PeerAddress(
            worker_id=name,
            incarnation=incarnation,
            host="h",
            control="c",
            transports={road: f"{road}://{name}" for road in roads},
        )
        given = {
            "key": key,
            "source": source,
            "lease_id": "x",
            "source_ids": [0, 1],
            "target_ids": [2, 3],
            "headers": [b"h", b"i"],
            "digests": [block_digest(b"h", BLOCK), block_digest(b"i", BLOCK)],
            **changes,
        }
        return PullJob(**given)

    def results(self, count):
        done: list[PullDone] = []
        while len(done) < count:
            assert is_readable(self.puller.fileno(), 10)
            done += self.puller.poll()
        return done

    def pull(self, *args, **kwargs):
        self.puller.submit(self.job(*args, **kwargs))
        return self.results(1)[0]


@pytest.fixture
def rig():
    rig = Rig()
    yield rig
    rig.puller.close()
    assert rig.fast.is_closed


def test_the_best_common_road_is_taken_and_its_link_kept(rig):
    assert rig.pull().error is None
    done = rig.pull()
    assert (done.road, done.num_bytes) == ("fast", 128)
    assert rig.puller.road("p") == "fast"
    assert len(rig.fast.connects) == 1


def test_a_road_that_only_one_end_has_is_not_tried(rig):
    assert rig.pull(roads=("slow",)).road == "slow"
    assert rig.fast.connects == []


def test_no_common_road_is_an_error_that_names_both_sides(rig):
    error = rig.pull(roads=("other",)).error
    assert isinstance(error, PeerLost)
    assert "other" in str(error)


@pytest.mark.parametrize("error", [PeerLost("x"), TransferError("x"), OSError("x")])
def test_a_road_that_cannot_connect_gives_way_and_is_not_tried_again(rig, error):
    rig.fast.connect_error = error
    assert rig.pull().road == "slow"
    rig.slow.acts = [fail(LeaseExpired("x"))]
    assert isinstance(rig.pull().error, LeaseExpired)
    assert rig.pull().road == "slow"
    assert len(rig.fast.connects) == 1


def test_a_layout_mismatch_is_not_worked_around(rig):
    rig.fast.connect_error = LayoutMismatch.of("block_bytes", 1, 2)
    assert isinstance(rig.pull().error, LayoutMismatch)
    assert rig.slow.connects == []


@pytest.mark.parametrize("error", [LeaseExpired("x"), OSError("x"), RuntimeError("x")])
def test_a_failed_read_is_a_result_and_costs_the_link(rig, error):
    rig.fast.acts = [fail(error)]
    assert isinstance(rig.pull().error, TransferError)
    assert rig.pull().error is None
    assert rig.fast.reads[0][0].is_closed
    assert len(rig.fast.connects) == 2


def test_a_link_that_broke_while_idle_is_made_anew(rig):
    assert rig.pull().error is None
    rig.fast.acts = [fail(PeerLost("reset"))]
    assert rig.pull().error is None
    assert len(rig.fast.connects) == 2


@pytest.mark.parametrize(("after_s", "connects"), [(0.99, 2), (1.0, 1)])
def test_a_link_that_breaks_late_was_not_idle(rig, after_s, connects):
    assert rig.pull().error is None

    def hold_and_break(_):
        rig.clock.advance(after_s * RECONNECT_WITHIN_S)
        raise PeerLost("reset")

    rig.fast.acts = [hold_and_break]
    assert (rig.pull().error is None) is (connects == 2)
    assert len(rig.fast.connects) == connects


def test_a_new_link_that_loses_its_peer_is_not_retried(rig):
    rig.fast.acts = [fail(PeerLost("gone"))]
    assert isinstance(rig.pull().error, PeerLost)
    assert len(rig.fast.connects) == 1


def stopped_for(rig, seconds):
    """What is seen of a process that was stopped in the middle of a read: its clock, and the end of the connection."""

    def act(link):
        rig.memory.block(2)[:] = b"\x07" * 64
        rig.clock.advance(seconds)
        raise PeerLost("the connection to the source ended")

    return act


def test_an_own_pause_is_not_held_against_the_source(rig):
    rig.fast.acts = [stopped_for(rig, 4.0), stopped_for(rig, 20.0)]
    done = rig.pull()
    assert done.error is None
    assert len(rig.fast.connects) == 3
    assert bytes(rig.memory.block(2)) == BLOCK


def test_after_an_own_pause_a_source_that_is_lost_is_lost(rig):
    rig.fast.acts = [stopped_for(rig, 4.0), fail(PeerLost("gone"))]
    assert isinstance(rig.pull().error, PeerLost)
    assert len(rig.fast.connects) == 2


def test_a_wait_that_was_no_pause_is_held_against_the_source(rig):
    rig.fast.acts = [stopped_for(rig, 1.4)]
    assert isinstance(rig.pull().error, PeerLost)


def test_wrong_bytes_are_a_digest_mismatch(rig):
    rig.fast.block = b"\x06" * 64
    assert isinstance(rig.pull().error, DigestMismatch)


def test_wrong_bytes_after_the_lease_name_the_lease(rig):
    rig.fast.block = b"\x06" * 64
    rig.fast.confirm_error = LeaseExpired("over")
    assert isinstance(rig.pull().error, LeaseExpired)


def test_three_wrong_digests_eject_the_road(rig):
    rig.fast.block = b"\x06" * 64
    for _ in range(3):
        assert isinstance(rig.pull().error, DigestMismatch)
    assert rig.pull().road == "slow"


def test_wrong_bytes_after_the_lease_are_not_held_against_the_road(rig):
    rig.fast.block = b"\x06" * 64
    rig.fast.confirm_error = LeaseExpired("over")
    for _ in range(5):
        assert isinstance(rig.pull().error, LeaseExpired)
    rig.fast.block = BLOCK
    assert rig.pull().road == "fast"


def test_a_read_that_leaves_blocks_out_is_an_error(rig):
    rig.fast.leaves_out = 1
    error = rig.pull().error
    assert isinstance(error, TransferError)
    assert "not all" in str(error)


def test_the_request_s_deadline_bounds_the_read(rig):
    rig.pull(timeout_s=0.25)
    assert rig.fast.reads[0][1] == 0.25


def test_a_source_that_hangs_does_not_hold_up_another(rig):
    release = threading.Event()
    rig.fast.acts = [lambda link: release.wait(PATIENCE_S)]
    rig.puller.submit(rig.job("hung", key=("a", 0)))
    assert rig.fast.began.wait(PATIENCE_S)
    rig.puller.submit(rig.job("fine", key=("b", 0), target_ids=[4, 5]))
    assert rig.results(1)[0].job.key == ("b", 0)
    release.set()
    assert rig.results(1)[0].error is None


def test_a_cancelled_job_that_waits_still_gets_its_result(rig):
    release = threading.Event()
    rig.fast.acts = [lambda link: release.wait(PATIENCE_S)]
    rig.puller.submit(rig.job(key=("a", 0)))
    rig.puller.submit(rig.job(key=("b", 0)))
    rig.puller.cancel(("b", 0))
    release.set()
    first, second = rig.results(2)
    assert first.error is None
    assert "cancelled" in str(second.error)


def test_forgetting_a_peer_interrupts_its_read_and_its_queue(rig):
    def hang(link):
        link.interrupted.wait(PATIENCE_S)
        raise PeerLost("interrupted")

    rig.fast.acts = [hang]
    rig.puller.submit(rig.job(key=("a", 0)))
    rig.puller.submit(rig.job(key=("b", 0)))
    assert rig.fast.began.wait(PATIENCE_S)
    rig.puller.forget_peer("p")
    assert [type(done.error) for done in rig.results(2)] == [PeerLost, PeerLost]
    assert rig.pull().error is None


def test_a_new_start_of_a_worker_gets_its_own_link(rig):
    rig.pull(incarnation="1")
    rig.pull(incarnation="2")
    assert [incarnation for _, incarnation in rig.fast.connects] == ["1", "2"]


def test_counters_tell_bytes_by_road_and_failures_by_cause(rig):
    rig.pull()
    rig.fast.acts = [fail(LeaseExpired("x"))]
    rig.pull()
    counters = rig.puller.counters
    assert (counters.transfers, counters.num_bytes, counters.failures) == (1, 128, 1)
    assert counters.bytes_by_road == {"fast": 128}
    assert counters.failures_by_cause == {"LeaseExpired": 1}


def test_nothing_waits_after_a_poll(rig):
    rig.pull()
    assert rig.puller.poll() == []
    assert not is_readable(rig.puller.fileno(), 0)


def test_closing_with_a_read_under_way_waits_for_it():
    rig = Rig()
    ended = []

    def hang(link):
        link.interrupted.wait(PATIENCE_S)
        ended.append(True)
        raise PeerLost("interrupted")

    rig.fast.acts = [hang]
    rig.puller.submit(rig.job())
    assert rig.fast.began.wait(PATIENCE_S)
    rig.puller.close()
    assert ended == [True]


@pytest.mark.parametrize("error", [zmq.ZMQError(24), MemoryError(), KeyError("a bug")])
def test_whatever_a_road_fails_with_the_job_has_an_end_and_the_lane_goes_on(rig, error):
    """A zmq.ZMQError is no OSError: it ended the lane's thread, and nobody heard of the job."""
    rig.fast.acts.append(fail(error))
    done = rig.pull()
    assert type(error).__name__ in str(done.error)
    assert rig.pull().error is None

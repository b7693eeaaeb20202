"""The worker's loop: every order, what a turn does in which order, and how a worker comes, starts over and leaves."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from kvtransfer.heard import FromReader
from protocol.errors import ConfigError, PeerLost, ProtocolError
from protocol.messages.orders import (
    Abort,
    Audit,
    CoordinatorMessage,
    Drain,
    Fence,
    Forget,
    Keep,
    ListBlocks,
    Ping,
    Refuse,
    SetRole,
    Sleep,
    Welcome,
)
from protocol.messages.peers import Attach, Pulled
from protocol.messages.records import PrefixRun
from protocol.messages.reports import AuditReply, Goodbye, Hello, Outputs, RoleChanged
from protocol.roles import Role
from protocol.sleeping import Part
from tests.unit.worker.lone_worker import (
    KEY,
    SOURCE,
    LoneWorker,
    announced,
    decode_order,
    prefill_order,
)
from worker.farewell import ALONE_S, GOODBYE_EVERY_S, HEARD_S
from worker.introduction import HELLO_EVERY_S
from worker.loop import IDLE_S, Garbled, Patience
from worker.silence import FIRST_WORD_S

WELCOME = Welcome(incarnation="w1")
ORDERS: dict[type, CoordinatorMessage] = {
    type(order): order
    for order in (
        WELCOME,
        Refuse(incarnation="w1", reason="no"),
        Ping(incarnation="w1"),
        prefill_order(),
        decode_order(),
        Abort(incarnation="w1", request_id="r", attempt=1),
        SetRole(incarnation="w1", role=Role.PREFILL),
        Fence(incarnation="w1"),
        Drain(incarnation="w1"),
        Forget(incarnation="w1", worker_id="P"),
        Audit(incarnation="w1", audit_id=3),
        Keep(incarnation="w1", source=SOURCE, first_block=0, parent=b"", keys=[b"k" * 16]),
        ListBlocks(incarnation="w1"),
        Sleep(incarnation="w1", parts=[Part.KV_CACHE]),
    )
}


def reader(message: Attach | Pulled) -> FromReader:
    return FromReader(b"D/d1", message)


ATTACH = reader(Attach(incarnation="d1", request_id="r", attempt=1, first_block=0))
PULLED = reader(Pulled(incarnation="d1", request_id="r", attempt=1))


def welcomed() -> LoneWorker:
    worker = LoneWorker()
    assert worker.names(WELCOME) == ["Hello"]
    return worker


# ---- orders


@pytest.mark.parametrize("kind", get_args(CoordinatorMessage), ids=lambda kind: kind.__name__)
def test_order_of_every_kind_is_obeyed_and_one_for_another_start_is_dropped(kind: type) -> None:
    stale = LoneWorker()
    stale.context.incarnation = "another"
    stale.loop.take(ORDERS[kind])
    assert (stale.loop.dropped_messages, stale.held, stale.said) == (1, 0, [])
    worker = LoneWorker()
    if kind is Refuse:
        with pytest.raises(ConfigError, match="no"):
            worker.loop.take(ORDERS[kind])
    else:
        worker.loop.take(ORDERS[kind])
    assert worker.loop.dropped_messages == 0


def test_audit_tells_of_everything() -> None:
    worker = welcomed()
    worker.turn(prefill_order(), ATTACH)
    worker.turn(announced())
    (reply,) = (m for m in worker.turn(Audit(incarnation="w1", audit_id=3)) if is_account(m))
    assert (reply.audit_id, reply.worker_id, reply.incarnation) == (3, "W", "w1")
    assert (reply.leases, reply.sequences, reply.balanced) == (1, 1, True)
    assert (reply.fds, reply.threads, reply.shm_bytes) == (7, 3, 4096)
    assert reply.blocks.held == worker.held == sum(hold.blocks for hold in reply.holds)


def is_account(message: object) -> bool:
    return isinstance(message, AuditReply)


def test_audit_counts_reads_under_way() -> None:
    worker = welcomed()
    worker.turn(decode_order(), announced())
    (reply,) = worker.turn(Audit(incarnation="w1", audit_id=4))
    assert (reply.transfers, reply.sequences, reply.leases) == (1, 1, 0)


def test_role_that_was_set_is_told_and_said_in_the_next_hello() -> None:
    worker = welcomed()
    (told,) = worker.turn(SetRole(incarnation="w1", role=Role.PREFILL))
    assert told == RoleChanged(incarnation="w1", role=Role.PREFILL)
    worker.turn(Fence(incarnation="w1"))
    (hello,) = worker.turn(after_s=HELLO_EVERY_S)
    assert isinstance(hello, Hello)
    assert hello.role is Role.PREFILL


def test_peer_is_forgotten_when_it_left() -> None:
    worker = welcomed()
    worker.turn(Forget(incarnation="w1", worker_id="P"))
    assert worker.forgotten == ["P"]


def test_abort_ends_both_halves_of_a_request() -> None:
    worker = welcomed()
    worker.turn(prefill_order(), decode_order(source=None))
    assert worker.held > 0
    worker.turn(Abort(incarnation="w1", request_id="r", attempt=1))
    assert (worker.held, worker.roles.live()) == (0, [])


def test_undecodable_frame_is_counted_and_breaks_the_silence() -> None:
    worker = LoneWorker(silence_limit_s=10.0)
    worker.turn(WELCOME)
    worker.turn(Garbled(ProtocolError("bad tag")), after_s=9.0)
    worker.turn(after_s=9.0)
    assert (worker.loop.dropped_messages, worker.loop.is_over) == (1, False)


# ---- how it comes


def test_hello_is_said_until_it_is_welcomed() -> None:
    worker = LoneWorker()
    assert [worker.names(after_s=HELLO_EVERY_S / 2) for _ in range(4)] == [
        ["Hello"],
        [],
        ["Hello"],
        [],
    ]
    worker.turn(WELCOME)
    assert worker.names(after_s=10.0) == []


def test_heartbeat_speaks_of_a_registered_start_only() -> None:
    worker = LoneWorker()
    assert worker.loop.heartbeat() is None
    worker.turn(WELCOME, prefill_order(seq=7))
    beat = worker.loop.heartbeat()
    assert beat is not None
    assert (beat.incarnation, beat.identity, beat.heard, beat.live) == ("w1", b"w/1", 7, [KEY])
    assert (beat.step, beat.busy, beat.load.prefill_tokens) == (1, True, 6)
    assert (beat.load.transfers, beat.load.dropped_messages) == (5, 2)
    worker.turn(Fence(incarnation="w1"))
    assert worker.loop.heartbeat() is None


def test_heartbeat_during_a_step_names_what_was_heard_before_it() -> None:
    """A step may take seconds; what came before it must not be missed meanwhile."""
    worker = welcomed()
    seen: list[object] = []
    execute = worker.roles.runner.execute

    def watched(batch: object) -> object:
        seen.append(worker.loop.account)
        return execute(batch)  # type: ignore[arg-type]

    worker.roles.runner.execute = watched  # type: ignore[assignment,method-assign]
    worker.turn(prefill_order(seq=4))
    assert seen == [(4, [KEY])]


def test_time_it_did_not_listen_is_told_to_what_it_hears() -> None:
    worker = welcomed()
    worker.turn(after_s=0.25)
    worker.turn(decode_order(), after_s=0.5)
    assert worker.context.unheard_s == 0.5


@pytest.mark.parametrize(("after_s", "asked"), [(1.9, 1), (2.1, 2)])
def test_after_a_pause_of_its_own_it_has_sources_say_everything_again(
    after_s: float, asked: int
) -> None:
    worker = welcomed()
    worker.turn(decode_order())
    worker.turn(after_s=after_s)
    assert [type(message).__name__ for message in worker.asked] == ["Attach"] * asked


# ---- a turn


def test_outputs_of_a_turn_leave_in_one_frame() -> None:
    worker = welcomed()
    second = Abort(incarnation="w1", request_id="other", attempt=1)
    (frame,) = worker.turn(prefill_order(num_tokens=4), decode_order(source=None), second)
    assert isinstance(frame, Outputs)
    assert len(frame.outputs) == 2


def test_both_roles_step_in_one_turn_and_a_turn_without_work_is_idle() -> None:
    worker = welcomed()
    worker.turn(prefill_order(), decode_order(source=None))
    assert (worker.loop.steps, worker.loop.busy) == (2, True)
    worker.turn(Abort(incarnation="w1", request_id="r", attempt=1))
    assert (worker.loop.steps, worker.loop.busy) == (2, False)


def test_read_that_ended_lets_the_sequence_run_in_the_same_turn() -> None:
    worker = welcomed()
    worker.turn(decode_order(), announced(num_blocks=2, last=True))
    (frame,) = worker.turn(worker.ended())
    assert [output.index for output in frame.outputs] == [0, 1]


def test_failed_read_gives_the_request_back() -> None:
    worker = welcomed()
    worker.turn(decode_order(), announced())
    (failed,) = worker.turn(worker.ended(PeerLost("gone")))
    assert str(failed.failure) == "PeerLost: gone"
    assert worker.held == 0


def test_lease_of_a_silent_reader_ends_by_its_time() -> None:
    worker = welcomed()
    worker.turn(prefill_order(), ATTACH)
    worker.turn(after_s=29.0)
    assert len(worker.roles.leases) == 1
    worker.turn(after_s=2.0)
    assert (len(worker.roles.leases), worker.held) == (0, 0)


# ---- how it starts over


def test_fence_forgets_everything_and_comes_back_as_a_new_start() -> None:
    worker = welcomed()
    worker.turn(prefill_order(seq=3), decode_order())
    worker.turn(announced())
    worker.turn(Fence(incarnation="w1"))
    assert (worker.starts, worker.held, worker.roles.is_empty) == (1, 0, True)
    assert worker.loop.account == (0, [])
    (hello,) = worker.turn(after_s=HELLO_EVERY_S)
    assert hello.incarnation == hello.address.incarnation == worker.context.incarnation != "w1"
    worker.turn(prefill_order())
    assert worker.held == 0


def test_fence_in_the_middle_of_a_read_gives_the_blocks_back() -> None:
    """The old puller's results are never heard of; its blocks stayed held for ever."""
    worker = welcomed()
    worker.turn(decode_order(), announced())
    worker.turn(Abort(incarnation="w1", request_id="r", attempt=1))
    assert worker.held > 0
    worker.turn(Fence(incarnation="w1"))
    assert worker.held == 0


# ---- how it leaves


def test_drained_worker_says_goodbye_after_its_last_read() -> None:
    worker = welcomed()
    worker.turn(decode_order(), announced())
    worker.turn(
        Drain(incarnation="w1"), Abort(incarnation="w1", request_id="r", attempt=1), after_s=IDLE_S
    )
    assert not any(isinstance(message, Goodbye) for message in worker.said)
    assert worker.names(worker.ended(), after_s=IDLE_S) == ["Goodbye"]


def test_drained_worker_keeps_its_lease_until_the_reader_has_read() -> None:
    worker = welcomed()
    worker.turn(prefill_order(), ATTACH)
    assert worker.names(Drain(incarnation="w1"), after_s=1.0) == []
    assert worker.names(PULLED) == ["Goodbye"]


def test_goodbye_is_the_end_of_hearing_and_is_said_again() -> None:
    worker = welcomed()
    assert worker.names(Drain(incarnation="w1")) == ["Goodbye"]
    assert worker.loop.heartbeat() is None
    assert worker.names(prefill_order(), after_s=GOODBYE_EVERY_S) == ["Goodbye"]
    assert (worker.held, worker.loop.dropped_messages) == (0, 1)
    assert worker.names(after_s=ALONE_S - GOODBYE_EVERY_S) == ["Goodbye"]
    assert not worker.loop.is_over
    worker.turn(after_s=0.1)
    assert worker.loop.is_over


def test_goodbye_comes_after_the_outputs_of_requests_that_ran_out_of_time() -> None:
    """It came before: what expires is gathered after the turn's flush, and nothing was left to wait for."""
    worker = welcomed()
    worker.turn(prefill_order(), decode_order(deadline_in_s=5.0))
    worker.turn(Drain(incarnation="w1"), Abort(incarnation="w1", request_id="x", attempt=1))
    worker.roles.prefill.end(KEY)
    assert worker.names(after_s=6.0) == ["Outputs", "Goodbye"]


def test_what_is_told_at_once_does_not_overtake_what_was_gathered() -> None:
    worker = welcomed()
    worker.turn(decode_order(), announced(num_blocks=2, last=True))
    said = worker.names(worker.ended(), Audit(incarnation="w1", audit_id=1))
    assert said == ["Outputs", "AuditReply", "Outputs"]


def test_hello_says_that_another_coordinator_began_the_drain() -> None:
    worker = welcomed()
    worker.turn(prefill_order(), ATTACH)
    worker.turn(Drain(incarnation="w1"))
    worker.loop.is_registered = False  # as after a fence
    hello = worker.turn(after_s=HELLO_EVERY_S)[0]
    assert isinstance(hello, Hello)
    assert hello.draining


def test_worker_that_nobody_speaks_to_ends() -> None:
    worker = LoneWorker(silence_limit_s=5.0)
    for _ in range(int(FIRST_WORD_S) - 1):
        worker.turn(after_s=1.0)
    assert not worker.loop.is_over
    worker.turn(Ping(incarnation="w1"))
    for _ in range(6):
        worker.turn(after_s=0.9)
    assert worker.loop.is_over


def test_pause_of_a_worker_is_no_silence_of_the_coordinator() -> None:
    worker = LoneWorker(silence_limit_s=5.0)
    worker.turn(Ping(incarnation="w1"))
    worker.turn(after_s=60.0)
    assert not worker.loop.is_over


def test_signal_is_told_at_once_and_the_worker_goes_on_with_what_it_has() -> None:
    worker = welcomed()
    worker.turn(prefill_order(), ATTACH)
    worker.loop.stop()
    (hello,) = worker.turn()
    assert isinstance(hello, Hello)
    assert hello.stopping
    assert not hello.draining
    assert worker.loop.heartbeat() is not None
    assert worker.names(WELCOME, after_s=HELLO_EVERY_S) == ["Hello"]
    assert worker.names(after_s=HELLO_EVERY_S) == []
    (goodbye,) = worker.turn(PULLED)
    assert isinstance(goodbye, Goodbye)
    assert goodbye.stopping
    assert not worker.loop.is_over
    worker.turn(after_s=HEARD_S + 0.1)
    assert worker.loop.is_over


def test_signal_where_nobody_knows_the_worker_ends_it() -> None:
    worker = LoneWorker()
    worker.loop.stop()
    worker.turn()
    assert worker.loop.is_over


def test_grace_of_a_signal_has_an_end() -> None:
    worker = welcomed()
    worker.turn(decode_order(deadline_in_s=600.0), announced())
    worker.loop.stop()
    worker.turn(after_s=Patience().stop_grace_s)
    assert not worker.loop.is_over
    worker.turn(after_s=0.1)
    assert worker.held > 0
    assert worker.loop.is_over


def test_a_source_that_is_late_is_computed_without_it_at_once() -> None:
    """Neither the next regular look at what is late nor the wait for the next message is in the way of that."""
    worker = LoneWorker()
    worker.turn(WELCOME)
    late_s = IDLE_S / 4
    run = PrefixRun(source=SOURCE, begin_tokens=0, end_tokens=4, worth_s=late_s)
    order = msgspec.structs.replace(decode_order(source=None), prefix_runs=[run])
    assert "Outputs" not in worker.names(order)
    worker.turn()
    assert worker.loop.wait_s == pytest.approx(late_s)
    assert worker.names(after_s=late_s) == []
    assert worker.loop.wait_s == 0
    assert "Outputs" in worker.names()

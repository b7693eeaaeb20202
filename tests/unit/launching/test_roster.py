"""Who should run: what orders, exits and Ray's absence make of the places, without a process."""

from __future__ import annotations

import msgspec
import pytest

from launching.roster import (
    COORDINATOR,
    Action,
    End,
    Exit,
    Fail,
    Respec,
    Roster,
    Say,
    Spec,
    Start,
    Tell,
    ending,
)
from protocol.errors import ConfigError, WorkerLost
from protocol.messages.launcher import (
    LauncherWorker,
    NodeLeaving,
    RetireOrder,
    RoleOrder,
    ScaleOrder,
    ScaleRefused,
    ScaleTogether,
    StopOrder,
    WorkerExited,
)
from protocol.roles import Role
from protocol.specs import CoordinatorSpec, WorkerSpec
from tests.sim.launcher import MODEL

KILLED = Exit(-9)
WORKER = WorkerSpec(
    worker_id="decode-0", role=Role.DECODE, model=MODEL, control="c", run_directory="/nowhere"
)
MAIN = CoordinatorSpec(
    model=MODEL,
    control="c",
    host="127.0.0.1",
    port=1,
    expected={},
    max_model_len=64,
    block_size=16,
)


def more(order: ScaleOrder, now_s: float) -> WorkerSpec:
    if order.worker_id == "decode-9":
        raise ConfigError("9 do not fit")
    return msgspec.structs.replace(WORKER, worker_id=order.worker_id, role=order.role)


def roster(*, ready: bool = True) -> Roster:
    """A coordinator and decode-0, begun at 0 s, pid 7."""
    made = Roster("local", 1, more)
    specs: list[Spec] = [MAIN, WORKER]
    for number, spec in enumerate(specs):
        place = made.add(spec)
        made.begin(place, 0.0)
        place.pid = 6 + number
    if ready:
        made.served()
    return made


def told(actions: list[Action]) -> list[object]:
    return [action.message for action in actions if isinstance(action, Tell)]


def starts(actions: list[Action]) -> list[tuple[str, float]]:
    return [(a.place.name, a.after_s) for a in actions if isinstance(a, Start)]


def scale(made: Roster, name: str = "decode-1", role: Role = Role.DECODE) -> list[Action]:
    return made.on_order(ScaleOrder(worker_id=name, role=role), 1.0)


# ---- exits


def test_before_everything_serves_an_exit_fails_the_launch() -> None:
    (fail,) = roster(ready=False).exited("decode-0", Exit(2, "block size 3 is odd"), 1.0)
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, ConfigError)
    assert str(fail.error) == "decode-0 ended with status 2 while starting: block size 3 is odd"
    (fail,) = roster(ready=False).exited(COORDINATOR, KILLED, 1.0)
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, WorkerLost)


def test_a_worker_that_dies_is_told_and_started_again() -> None:
    actions = roster().exited("decode-0", KILLED, 1.0)
    assert told(actions) == [
        WorkerExited(worker_id="decode-0", pid=7, status=-9, restart_in_s=0.2, told=ending(-9))
    ]
    assert starts(actions) == [("decode-0", 0.2)]


def test_every_death_in_a_row_waits_longer_and_a_long_life_begins_anew() -> None:
    made = roster()
    place = made.get("decode-0")
    assert place is not None
    waits, now_s = [], 0.0
    for lived_s in (1.0, 1.0, 1.0, 1.0, 29.0, 31.0):
        now_s += lived_s
        waits += [after_s for _, after_s in starts(made.exited("decode-0", KILLED, now_s))]
        made.begin(place, now_s)
    assert waits == [0.2, 1.0, 2.0, 4.0, 8.0, 0.2]


def test_the_coordinator_is_started_again_and_nobody_is_told() -> None:
    actions = roster().exited(COORDINATOR, KILLED, 1.0)
    assert starts(actions) == [(COORDINATOR, 0.2)]
    assert told(actions) == []


def test_one_that_its_keeper_starts_again_is_not_started() -> None:
    actions = roster().exited("decode-0", Exit(-9, again_in_s=4.0, is_over=False), 1.0)
    assert starts(actions) == []
    assert told(actions) == [
        WorkerExited(worker_id="decode-0", pid=7, status=-9, restart_in_s=4.0, told=ending(-9))
    ]


def test_a_start_that_is_due_happens_once_and_only_while_it_is_wanted() -> None:
    made = roster()
    place = made.get("decode-0")
    assert place is not None
    made.exited("decode-0", KILLED, 1.0)
    assert starts(made.due(place)) == [("decode-0", 0.0)]
    made.on_order(RetireOrder(worker_id="decode-0"), 1.1)
    assert made.due(place) == []
    made.gone("decode-0", 0)
    scale(made, "decode-0")
    assert made.due(place) == [], "another worker has that name now"


def test_what_ends_on_the_way_out_is_neither_told_nor_started() -> None:
    made = roster()
    place = made.get("decode-0")
    assert place is not None
    made.close()
    assert made.exited("decode-0", KILLED, 1.0) == []
    assert made.due(place) == []
    assert made.gone("decode-0", 0) == []
    assert scale(made) == []
    assert made.go_away("why") == []
    assert not made.served()


# ---- orders


def test_a_worker_more_is_started_once() -> None:
    made = roster()
    assert starts(scale(made)) == [("decode-1", 0.0)]
    assert scale(made) == []
    assert made.hello().workers == [
        LauncherWorker(worker_id="decode-0", role=Role.DECODE),
        LauncherWorker(worker_id="decode-1", role=Role.DECODE),
    ]


def test_what_does_not_fit_is_refused_with_its_reason() -> None:
    made = roster()
    actions = scale(made, "decode-9")
    assert told(actions) == [ScaleRefused(worker_id="decode-9", reason="9 do not fit")]
    assert Say("decode-9", "not started: 9 do not fit") in actions
    assert "decode-9" not in made


def test_of_what_is_ordered_together_all_start_or_none() -> None:
    made = roster()
    orders = [ScaleOrder(worker_id=f"decode-{n}", role=Role.DECODE) for n in range(3)]
    actions = made.on_order(ScaleTogether(orders=orders), 1.0)
    assert starts(actions) == [("decode-1", 0.0), ("decode-2", 0.0)]
    assert made.on_order(ScaleTogether(orders=orders), 2.0) == []
    more = [ScaleOrder(worker_id=f"decode-{n}", role=Role.DECODE) for n in range(7, 11)]
    before = list(made)
    actions = made.on_order(ScaleTogether(orders=more), 3.0)
    reason = "2 of 4 workers fit, so none is started: 9 do not fit"
    assert told(actions) == [
        ScaleRefused(worker_id=f"decode-{n}", reason=reason) for n in range(7, 11)
    ]
    assert starts(actions) == []
    assert list(made) == before


def test_an_ordered_worker_whose_first_start_cannot_work_is_refused() -> None:
    made = roster()
    scale(made)
    actions = made.exited("decode-1", Exit(2, "no kernel"), 2.0)
    assert isinstance(actions[0], End)
    (refused,) = told(actions)
    assert isinstance(refused, ScaleRefused)
    assert refused.reason.endswith("no kernel")
    assert "decode-1" not in made


def test_an_ordered_worker_that_died_once_is_no_longer_refused() -> None:
    made = roster()
    scale(made)
    made.exited("decode-1", KILLED, 2.0)
    assert starts(made.exited("decode-1", Exit(2), 3.0)) == [("decode-1", 1.0)]


def test_a_worker_of_the_plan_is_never_refused() -> None:
    assert starts(roster().exited("decode-0", Exit(2), 1.0)) == [("decode-0", 0.2)]


def test_a_stopped_worker_is_ended_until_it_is_gone() -> None:
    made = roster()
    place = made.get("decode-0")
    assert place is not None
    stop = StopOrder(worker_id="decode-0")
    assert made.on_order(stop, 1.0) == made.on_order(stop, 1.1) == [End(place)]
    assert made.hello().workers == [
        LauncherWorker(worker_id="decode-0", role=Role.DECODE, leaving=True)
    ]
    assert made.exited("decode-0", Exit(0), 2.0) == [End(place)]
    exited = WorkerExited(
        worker_id="decode-0", pid=7, status=0, restart_in_s=None, told="ended as it was told to"
    )
    assert told(made.gone("decode-0", 0)) == [exited]
    assert made.gone("decode-0", 0) == []
    assert made.on_order(stop, 3.0) == []


def test_a_retired_worker_runs_on_and_is_not_started_again() -> None:
    made = roster()
    assert made.on_order(RetireOrder(worker_id="decode-0"), 1.0) == []
    actions = made.exited("decode-0", Exit(-9, again_in_s=1.0, is_over=False), 2.0)
    assert starts(actions) == []
    assert told(actions) == [
        WorkerExited(worker_id="decode-0", pid=7, status=-9, restart_in_s=None, told=ending(-9))
    ]


def test_a_role_is_that_of_the_next_start() -> None:
    made = roster()
    (respec,) = made.on_order(RoleOrder(worker_id="decode-0", role=Role.PREFILL), 1.0)
    assert isinstance(respec, Respec)
    assert respec.place.worker is not None
    assert respec.place.worker.role is Role.PREFILL
    assert made.hello().workers == [LauncherWorker(worker_id="decode-0", role=Role.PREFILL)]


@pytest.mark.parametrize("name", [COORDINATOR, "decode-7"])
def test_orders_for_what_is_no_worker_mean_nothing(name: str) -> None:
    made = roster()
    for order in (
        StopOrder(worker_id=name),
        RetireOrder(worker_id=name),
        RoleOrder(worker_id=name, role=Role.PREFILL),
    ):
        assert made.on_order(order, 1.0) == []
    assert not any(place.leaving for place in made)


# ---- away, and machines that leave


def test_while_it_is_away_more_is_refused_and_hello_says_why() -> None:
    made = roster()
    (hello,) = told(made.go_away("Ray is away (lost)"))
    assert hello == made.hello()
    assert made.hello().away == "Ray is away (lost)"
    assert made.go_away("again") == []
    (refused,) = told(scale(made))
    assert isinstance(refused, ScaleRefused)
    assert refused.reason == "Ray is away (lost); try again when it is back"
    made.come_back()
    assert made.hello().away == ""
    assert starts(scale(made)) == [("decode-1", 0.0)]


def test_what_cannot_be_run_where_it_was_placed() -> None:
    (fail,) = roster(ready=False).failed("decode-0", "no model")
    assert isinstance(fail, Fail)
    assert str(fail.error) == "decode-0: no model"
    made = roster()
    assert made.failed("decode-0", "no model") == [Say("decode-0", "no model")]
    scale(made)
    assert told(made.failed("decode-1", "no model")) == [
        ScaleRefused(worker_id="decode-1", reason="no model")
    ]


def test_only_workers_leave_with_their_machine() -> None:
    made = roster()
    actions = made.machine_leaving((COORDINATOR, "decode-0", "decode-7"), 30.0)
    assert told(actions) == [NodeLeaving(worker_ids=["decode-0"], deadline_s=30.0)]
    assert made.machine_leaving((COORDINATOR,), 30.0) == []


# ---- starts


def test_generations_grow_over_all_places() -> None:
    made = roster()
    first, second = list(made)
    assert (first.generation, second.generation) == (1, 2)
    assert made.begin(first, 5.0) == 3
    assert made.starting(4.0) == [], "the coordinator takes no KV pool"
    made.begin(second, 5.0)
    assert made.starting(4.0) == [WORKER]
    scale(made)
    assert [spec.worker_id for spec in made.starting(6.0)] == ["decode-1"], "it is still to come"


def test_the_launcher_is_ready_once() -> None:
    made = roster(ready=False)
    assert made.served()
    assert not made.served()
    assert made.ready


def test_ends_read_well() -> None:
    assert ending(-9) == "was ended by SIGKILL"
    assert ending(2) == "ended with status 2"
    assert ending(-40) == "was ended by signal 40"  # a real-time one, which has no name


def test_the_coordinator_hears_a_process_s_last_line_clipped() -> None:
    (exited,) = told(roster().exited("decode-0", Exit(1, "MemoryError: " + "x" * 9_999), 1.0))
    assert isinstance(exited, WorkerExited)
    assert exited.told.startswith("ended with status 1: MemoryError: xxx")
    assert len(exited.told) < 500

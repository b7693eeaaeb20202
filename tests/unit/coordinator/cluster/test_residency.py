"""Models that come and go, step by step beside a scheduler that is written from the rules alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.cluster.residency import (
    PATIENCE_S,
    Action,
    Admit,
    Fail,
    Load,
    Presence,
    Residency,
    Resident,
    Ticket,
    Unload,
)
from protocol.errors import ModelUnavailable, Overloaded
from tests.residency_rules import Rules, Waiting

NAMES = ("a", "b", "c")


def shown(actions: list[Action], numbers: dict[int, int]) -> set[tuple[str, object]]:
    found: set[tuple[str, object]] = set()
    for action in actions:
        match action:
            case Load(name):
                found.add(("load", name))
            case Unload(name):
                found.add(("unload", name))
            case Admit(ticket):
                found.add(("admit", numbers[id(ticket)]))
            case Fail(ticket, _):
                found.add(("fail", numbers[id(ticket)]))
    return found


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("ask", "ask", "ask", "leave", "drop", "loaded", "gone", "wait")),
        st.integers(0, 5),
        st.sampled_from((0.0, 0.5, 4.0, 11.0)),
    ),
    max_size=60,
)


@settings(max_examples=400, deadline=None)
@given(STEPS, st.sampled_from(((2, 2), (3, 2), (2, 3))))
def test_it_does_at_every_step_what_the_rules_say(
    steps: list[tuple[str, int, float]], room: tuple[int, int]
) -> None:
    budget, most = room
    sizes, keep = {"a": 1, "b": 1, "c": 1}, {"a": 3.0, "b": None, "c": 0.0}
    residency = Residency([Resident(n, sizes[n], keep[n]) for n in NAMES], budget, most)
    rules = Rules(sizes, budget, most, keep=dict(keep))
    now, tickets, numbers = 0.0, list[Ticket](), dict[int, int]()
    for what, index, pause in steps:
        now += pause
        using = [t for t in tickets if t.is_admitted]
        waiting = list(residency.line)
        name = NAMES[index % 3]
        if what == "ask":
            ticket = Ticket(name, now)
            numbers[id(ticket)] = len(tickets)
            tickets.append(ticket)
            rules.line.append(Waiting(numbers[id(ticket)], name, now))
            actions = residency.ask(ticket, now)
        elif what == "leave" and using:
            ticket = using[index % len(using)]
            tickets[numbers[id(ticket)]] = Ticket(ticket.model, now)  # its number stays taken
            rules.left(ticket.model, now)
            actions = residency.leave(ticket, now)
        elif what == "drop" and waiting:
            ticket = waiting[index % len(waiting)]
            rules.line = [entry for entry in rules.line if entry.number != numbers[id(ticket)]]
            actions = residency.leave(ticket, now)
        elif what == "loaded" and rules.state[name] == "loading":
            rules.loaded(name, now)
            actions = residency.loaded(name, now)
        elif what == "gone" and rules.state[name] == "leaving":
            rules.state[name] = "out"
            actions = residency.gone(name, now)
        else:
            actions = residency.decide(now)
        assert shown(actions, numbers) == rules.step(now)
        states = {n: rules.state[n] for n in NAMES}
        names = {"out": "OUT", "loading": "LOADING", "in": "IN", "leaving": "LEAVING"}
        assert {n: m.presence.name for n, m in residency.models.items()} == {
            n: names[s] for n, s in states.items()
        }
        here = [m for m in residency.models.values() if m.presence is not Presence.OUT]
        assert sum(m.needed_bytes for m in here) <= budget
        assert len(here) <= most


def in_memory(*names: str, budget: int = 2) -> Residency:
    """These are loaded, in that order, at 0 s, 1 s …"""
    residency = Residency([Resident(name, 1, None) for name in NAMES], budget)
    for second, name in enumerate(names):
        ticket = Ticket(name, float(second))
        residency.ask(ticket, float(second))
        residency.loaded(name, float(second))
        residency.leave(ticket, float(second))
    return residency


def test_the_least_recently_used_goes() -> None:
    residency = in_memory("a", "b")
    ticket = Ticket("a", 5.0)
    residency.ask(ticket, 5.0)
    residency.leave(ticket, 5.0)
    assert residency.ask(Ticket("c", 6.0), 6.0) == [Unload("b")]
    assert residency.gone("b", 6.1) == [Load("c")]


def test_one_load_serves_all_who_wait_in_their_order() -> None:
    residency = Residency([Resident("a", 1)], 1)
    tickets = [Ticket("a", float(second)) for second in range(3)]
    assert residency.ask(tickets[0], 0.0) == [Load("a")]
    assert residency.ask(tickets[1], 1.0) == residency.ask(tickets[2], 2.0) == []
    assert residency.loaded("a", 3.0) == [Admit(ticket) for ticket in tickets]


def test_a_used_model_stays_and_takes_nothing_new_once_somebody_waited_long() -> None:
    residency = in_memory("a", "b")
    users = [Ticket("a", 5.0), Ticket("b", 5.0)]
    for user in users:
        residency.ask(user, 5.0)
    assert residency.ask(Ticket("c", 6.0), 6.0) == []
    early, late = Ticket("a", 7.0), Ticket("a", 7.0 + PATIENCE_S)
    assert residency.ask(early, 7.0) == [Admit(early)]
    assert residency.ask(late, 7.0 + PATIENCE_S) == []
    assert residency.leave(users[0], 20.0) == []
    assert residency.leave(early, 21.0) == [Unload("a")]
    assert residency.gone("a", 22.0) == [Load("c")]


def test_a_load_that_fails_tells_who_waited_and_is_not_tried_again_at_once() -> None:
    residency = Residency([Resident("a", 1)], 1)
    first, second = Ticket("a", 0.0), Ticket("a", 0.0)
    residency.ask(first, 0.0)
    residency.ask(second, 0.0)
    failures = residency.failed("a", "the file is torn", 1.0)
    assert [action.ticket for action in failures if isinstance(action, Fail)] == [first, second]
    with pytest.raises(ModelUnavailable, match="the file is torn"):
        residency.ask(Ticket("a", 1.5), 1.5)
    assert residency.ask(Ticket("a", 2.1), 2.1) == [Load("a")]
    residency.failed("a", "again", 3.0)
    with pytest.raises(ModelUnavailable):
        residency.ask(Ticket("a", 4.5), 4.5)


def test_the_line_has_an_end_and_who_leaves_it_frees_a_place() -> None:
    residency = Residency([Resident("a", 1)], 1, max_held=2)
    tickets = [Ticket("a", 0.0), Ticket("a", 0.0)]
    for ticket in tickets:
        residency.ask(ticket, 0.0)
    (refused,) = residency.ask(Ticket("a", 0.0), 0.0)
    assert isinstance(refused, Fail)
    assert isinstance(refused.error, Overloaded)
    residency.leave(tickets[0], 0.0)
    residency.ask(Ticket("a", 0.0), 0.0)
    assert len(residency.line) == 2


def test_what_follows_from_a_request_that_finds_no_place_is_done_all_the_same() -> None:
    residency = Residency([Resident("a", 1, 3.0), Resident("b", 1)], 2, max_held=1)
    residency.ask(ticket := Ticket("a", 0.0), 0.0)
    residency.loaded("a", 0.0)
    residency.leave(ticket, 0.0)
    assert residency.ask(Ticket("b", 1.0), 1.0) == [Load("b")]
    unload, fail = residency.ask(Ticket("b", 9.0), 9.0)
    assert unload == Unload("a")
    assert isinstance(fail, Fail)


def test_a_clients_word_on_how_long_holds_from_then_on() -> None:
    residency = in_memory("a")
    ticket = Ticket("a", 5.0, keep_alive_s=0.0, has_word=True)
    residency.ask(ticket, 5.0)
    assert residency.leave(ticket, 6.0) == [Unload("a")]


def test_an_operator_sends_away_what_is_used_as_soon_as_it_is_not() -> None:
    residency = in_memory("a")
    user, late = Ticket("a", 5.0), Ticket("a", 7.0)
    residency.ask(user, 5.0)
    assert residency.send_away("a", 6.0) == []
    assert residency.ask(late, 7.0) == []
    assert residency.leave(user, 8.0) == [Unload("a")]
    assert residency.gone("a", 9.0) == [Load("a")]

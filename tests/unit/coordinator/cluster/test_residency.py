"""Models that come and go, step by step beside a scheduler that is written from the rules alone."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.cluster.residency import (
    PATIENCE_S,
    Action,
    Admit,
    Fail,
    Grow,
    Load,
    Presence,
    Residency,
    Resident,
    Shrink,
    Ticket,
    Unload,
)
from protocol.errors import ModelUnavailable, Overloaded
from tests.residency_rules import NO_WORD, Done, Rules, Waiting

NAMES = ("a", "b", "c")


def shown(actions: list[Action], numbers: dict[int, int]) -> Done:
    found: Done = set()
    for action in actions:
        match action:
            case Load(name):
                found.add(("load", name))
            case Unload(name):
                found.add(("unload", name))
            case Shrink(name):
                found.add(("shrink", name))
            case Grow(name):
                found.add(("grow", name))
            case Admit(ticket):
                found.add(("admit", numbers[id(ticket)]))
            case Fail(ticket, _):
                found.add(("fail", numbers[id(ticket)]))
    return found


KINDS = (
    "ask",
    "ask",
    "ask",
    "ask",
    "leave",
    "leave",
    "drop",
    "loaded",
    "loaded",
    "failed",
    "gone",
    "gone",
    "shrank",
    "send",
    "wait",
)
KEEP: tuple[float | None, ...] = (NO_WORD, NO_WORD, NO_WORD, None, 0.0, 5.0)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(0, 5),
        st.sampled_from((0.0, 0.0, 0.5, 4.0, 11.0)),
        st.sampled_from(KEEP),
    ),
    max_size=60,
)
Sizes = tuple[int, int, int]
ROOMS: tuple[tuple[Sizes, Sizes, int, int], ...] = (
    ((1, 1, 1), (1, 1, 1), 2, 3),
    ((1, 1, 1), (1, 1, 1), 3, 2),
    ((1, 2, 3), (1, 2, 3), 3, 3),
    ((1, 2, 3), (1, 2, 3), 4, 2),
    ((3, 3, 3), (3, 3, 3), 3, 3),
    ((4, 2, 3), (2, 1, 3), 6, 3),
    ((4, 4, 4), (2, 1, 3), 7, 3),
    ((4, 4, 4), (1, 1, 1), 6, 2),
)
"""Of each model what it needs, and with its smallest pools; the budget, and how many may be loaded."""


class Beside:
    """The deciding code and the rules, told the same."""

    def __init__(self, room: tuple[Sizes, Sizes, int, int], max_held: int) -> None:
        sizes, least = (dict(zip(NAMES, each, strict=True)) for each in room[:2])
        self.budget, self.most = room[2:]
        usual: dict[str, float | None] = {"a": 3.0, "b": None, "c": 0.0}
        models = [Resident(n, sizes[n], usual[n], least_bytes=least[n]) for n in NAMES]
        self.residency = Residency(models, self.budget, self.most, max_held)
        self.rules = Rules(sizes, self.budget, self.most, usual, max_held, least)
        self.now, self.tickets, self.numbers = 0.0, list[Ticket](), dict[int, int]()
        self.using: list[Ticket] = []

    def step(self, what: str, index: int, keep: float | None) -> None:
        """One thing happens, if it can, and both say what follows."""
        residency, rules, now, name = self.residency, self.rules, self.now, NAMES[index % 3]
        waiting, using = residency.line, self.using
        if what == "ask":
            told, expected = self.ask(name, keep)
        elif what == "leave" and using:
            ticket = using.pop(index % len(using))
            told, expected = residency.leave(ticket, now), rules.left(ticket.model, now)
        elif what == "drop" and waiting:
            ticket = waiting[index % len(waiting)]
            told = residency.leave(ticket, now)
            expected = rules.dropped(self.numbers[id(ticket)], now)
        elif what == "loaded" and rules.state[name] == "loading":
            told, expected = residency.loaded(name, now), rules.loaded(name, now)
        elif what == "failed" and rules.state[name] == "loading":
            told, expected = residency.failed(name, "torn", now), rules.failed(name, now)
        elif what == "gone" and rules.state[name] == "leaving":
            told, expected = residency.gone(name, now), rules.gone(name, now)
        elif what == "shrank" and rules.has[name] != rules.will[name]:
            residency.takes(name, rules.will[name], rules.will[name])
            told, expected = residency.decide(now), rules.shrank(name, now)
        elif what == "send":
            told, expected = residency.send_away(name, now), rules.send_away(name, now)
        else:
            told, expected = residency.decide(now), rules.step(now)
        self.using += [action.ticket for action in told if isinstance(action, Admit)]
        assert len(shown(told, self.numbers)) == len(told), "nothing is done twice"
        assert shown(told, self.numbers) == {each for each in expected if each[0] != "refused"}

    def ask(self, name: str, keep: float | None) -> tuple[list[Action], Done]:
        ticket = Ticket(name, self.now, keep, has_word=keep != NO_WORD)
        number = self.numbers[id(ticket)] = len(self.tickets)
        self.tickets.append(ticket)
        expected = self.rules.ask(Waiting(number, name, self.now, keep), self.now)
        try:
            return self.residency.ask(ticket, self.now), expected
        except ModelUnavailable:
            assert expected == {("refused", number)}
            return [], expected

    def check(self) -> None:
        """What both have is the same, and fits."""
        models, rules = self.residency.models, self.rules
        assert {n: m.presence.name.lower() for n, m in models.items()} == rules.state
        assert {n: m.num_users for n, m in models.items()} == rules.users
        assert {n: m.keep_alive_s for n, m in models.items()} == rules.keep
        assert [self.numbers[id(t)] for t in self.residency.line] == [e.number for e in rules.line]
        here = [m for m in models.values() if m.presence is not Presence.OUT]
        assert sum(m.taken_bytes for m in here) <= self.budget
        assert {n: (m.taken_bytes, m.soon_bytes) for n, m in models.items()} == {
            n: (rules.has[n], rules.will[n]) for n in NAMES
        }
        assert len(here) <= self.most
        assert all(m.presence is Presence.IN for m in models.values() if m.num_users)

    def settle(self) -> None:
        """Everybody leaves in the end, and what is begun comes about: who waited was served, and everything that may goes."""
        for _ in range(200):
            if not (self.using or self.residency.line):
                break
            for name in NAMES:
                for what in ("loaded", "gone", "shrank"):
                    self.now += 1.0
                    self.step(what, NAMES.index(name), NO_WORD)
            while self.using:
                self.step("leave", 0, NO_WORD)
        assert not self.residency.line
        assert not self.using


@settings(max_examples=400, deadline=None)
@given(STEPS, st.sampled_from(ROOMS), st.sampled_from((2, 512)))
def test_it_does_at_every_step_what_the_rules_say(
    steps: list[tuple[str, int, float, float | None]],
    room: tuple[Sizes, Sizes, int, int],
    max_held: int,
) -> None:
    beside = Beside(room, max_held)
    for what, index, pause, keep in steps:
        beside.now += pause
        beside.step(what, index, keep)
        beside.check()
    beside.settle()


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(len(ROOMS)))
def test_nor_does_it_part_from_them_in_ten_thousand_steps(seed: int) -> None:
    chance = random.Random(seed)
    beside = Beside(ROOMS[seed], max_held=chance.choice((3, 512)))
    for _ in range(10_000):
        beside.now += chance.choice((0.0, 0.0, 0.5, 4.0, 11.0))
        beside.step(chance.choice(KINDS), chance.randrange(6), chance.choice(KEEP))
        beside.check()
    beside.settle()


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


def test_however_often_a_load_failed_it_is_tried_again_within_a_minute() -> None:
    """A day of a broken file: two to the power of the failures was no number any more, and nobody heard of the next one."""
    residency = Residency([Resident("a", 1)], 1)
    for number in range(1100):
        now_s = 60.0 * number
        ticket = Ticket("a", now_s)
        assert residency.ask(ticket, now_s) == [Load("a")]
        (failure,) = residency.failed("a", "the file is torn", now_s)
        assert isinstance(failure, Fail)
        assert failure.ticket is ticket


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


def test_who_finds_no_place_is_told_when_one_is_free_and_no_two_the_same() -> None:
    """All were told two seconds, however long the answers before theirs took."""
    residency = Residency([Resident("a", 1)], 1, max_held=1)
    held = [Ticket("a", 0.0), Ticket("a", 0.0)]
    residency.ask(held[0], 0.0)
    residency.loaded("a", 0.0)
    for now_s in range(1, 41):
        residency.ask(ticket := Ticket("a", now_s), now_s)
        residency.leave(ticket, now_s)
    residency.models["a"].presence = Presence.LEAVING
    residency.ask(held[1], 40.0)
    told = []
    for _ in range(3):
        (refused,) = residency.ask(Ticket("a", 40.0), 40.0)
        assert isinstance(refused, Fail)
        assert isinstance(refused.error, Overloaded)
        told.append(refused.error.retry_after_s)
    assert told == [pytest.approx(number * 1.03, rel=0.1) for number in (1, 2, 3)]


def test_what_follows_from_a_request_that_finds_no_place_is_done_all_the_same() -> None:
    residency = Residency([Resident("a", 1, 3.0), Resident("b", 1)], 2, max_held=1)
    residency.ask(ticket := Ticket("a", 0.0), 0.0)
    residency.loaded("a", 0.0)
    residency.leave(ticket, 0.0)
    assert residency.ask(Ticket("b", 1.0), 1.0) == [Load("b")]
    unload, fail = residency.ask(Ticket("b", 9.0), 9.0)
    assert unload == Unload("a")
    assert isinstance(fail, Fail)


def test_a_clients_word_on_how_long_holds_until_the_model_goes() -> None:
    residency = in_memory("a")
    ticket = Ticket("a", 5.0, keep_alive_s=0.0, has_word=True)
    residency.ask(ticket, 5.0)
    assert residency.leave(ticket, 6.0) == [Unload("a")]
    residency.gone("a", 6.0)
    residency.ask(silent := Ticket("a", 7.0), 7.0)
    residency.loaded("a", 8.0)
    assert residency.leave(silent, 9.0) == []


def test_an_operator_sends_away_what_is_used_as_soon_as_it_is_not() -> None:
    residency = in_memory("a")
    user, late = Ticket("a", 5.0), Ticket("a", 7.0)
    residency.ask(user, 5.0)
    assert residency.send_away("a", 6.0) == []
    assert residency.ask(late, 7.0) == []
    assert residency.leave(user, 8.0) == [Unload("a")]
    assert residency.gone("a", 9.0) == [Load("a")]


def test_who_waited_before_a_model_was_sent_away_is_served_by_that_load() -> None:
    """Whoever may say a word of a model could have it loaded again and again else, and nobody would be served."""
    residency = Residency([Resident("a", 1)], 1)
    early, late = Ticket("a", 0.0), Ticket("a", 2.0)
    residency.ask(early, 0.0)
    residency.send_away("a", 1.0)
    residency.ask(late, 2.0)
    residency.send_away("a", 2.5)
    assert residency.loaded("a", 3.0) == [Admit(early)]
    assert residency.leave(early, 4.0) == [Unload("a")]
    assert residency.gone("a", 5.0) == [Load("a")]
    residency.send_away("a", 5.5)
    assert residency.loaded("a", 6.0) == [Admit(late)]

"""The handoff, explored: every state of a small cluster under a budget of faults."""

from __future__ import annotations

import logging
from typing import get_args

import pytest

import kvtransfer.promises.proofs
import kvtransfer.pulling.puller
from protocol.messages.orders import CoordinatorMessage
from tests.model.configuration import BOUNDED, KINDS, ONE, TWO, Configuration, Faults, once
from tests.model.explore import Explorer, Found
from worker.outbox import Outbox

BOUND_STATES = 7_000


@pytest.fixture(autouse=True)
def quiet():
    """The coordinator warns of every fault."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def assert_clean(found: Found) -> None:
    assert found.violation is None, "\n  ".join((str(found.violation), *found.trace))


@pytest.mark.sim
@pytest.mark.parametrize("configuration", BOUNDED, ids=lambda c: c.name)
def test_no_state_breaks_a_promise(configuration: Configuration) -> None:
    assert_clean(Explorer(configuration).run(BOUND_STATES))


@pytest.mark.sim
@pytest.mark.parametrize("kind", KINDS)
def test_every_state_with_one_fault_is_right_and_ends_empty(kind: str) -> None:
    found = Explorer(Configuration(kind, ONE, faults=once(kind))).run(40_000)
    assert_clean(found)
    assert found.is_complete
    assert found.terminal > 0


@pytest.mark.sim
def test_orders_of_every_kind_are_explored() -> None:
    explorer = Explorer(next(c for c in BOUNDED if c.name == "orders"))
    assert_clean(explorer.run(BOUND_STATES))
    letters = [e for e in explorer.moves.parts.envelopes if e.kind == "order"]
    assert {type(letter.message) for letter in letters} == set(get_args(CoordinatorMessage))


def test_search_finds_a_goodbye_before_the_last_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker tells at once once overtook what it had gathered."""
    told_at_once = lambda self, message: self._lines.tell(message)  # noqa: E731
    monkeypatch.setattr(Outbox, "tell", told_at_once)
    faults = Faults(drain=1, late=1)
    found = Explorer(Configuration("said late", ONE, late_flush=True, faults=faults)).run(2_000)
    assert found.violation == "P says Outputs after its Goodbye"


def test_search_finds_an_account_without_cancelled_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit in the middle of an aborted read."""
    monkeypatch.setattr("worker.reports.pending_reads", lambda roles: 0)
    found = Explorer(Configuration("audit", ONE, faults=Faults(audit=1))).run(4_000)
    assert found.violation is not None
    assert "accounts for transfers=0" in found.violation


def test_faultless_pair_of_requests_has_one_end() -> None:
    found = Explorer(Configuration("none", TWO)).run(1000)
    assert_clean(found)
    assert (found.is_complete, found.terminal) == (True, 1)


def test_search_finds_what_a_missing_digest_lets_through(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (kvtransfer.promises.proofs, kvtransfer.pulling.puller):
        monkeypatch.setattr(module, "block_digest", lambda header, block: b"")
    found = Explorer(Configuration("flip", ONE, faults=Faults(flip=1))).run(20_000)
    assert found.violation is not None
    assert "wrong bytes" in found.violation
    assert found.trace[-1].startswith("D ")


def test_same_search_twice_counts_the_same() -> None:
    configuration = Configuration("twice", ONE, faults=Faults(cancel=1))
    first, second = Explorer(configuration).run(5000), Explorer(configuration).run(5000)
    assert (first.states, first.transitions) == (second.states, second.transitions)

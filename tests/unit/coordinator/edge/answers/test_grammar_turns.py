"""Constraints are tried one at a time, tenants take turns, and nobody's many keep another's few waiting or out."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.edge.answers import grammar_check
from coordinator.edge.answers.grammar_check import (
    FREE_S,
    MAX_WAITING,
    MAX_WAITING_OF_ONE,
    SHARE,
    GrammarCheck,
    Turns,
)
from protocol.constraints import json_schema
from protocol.errors import InvalidRequest, ModelUnavailable, Overloaded


class SlowCompiles:
    """Each is tried until a test says `go`; `tried` are those that began."""

    worked_s = 0.0

    def __init__(self):
        self.tried = []
        self.go = asyncio.Semaphore(0)

    async def refusal(self, constraint):
        self.tried.append(constraint.text)
        await self.go.acquire()
        return


def numbered(name):
    return json_schema({"const": name})


async def others_turn(rounds=20):
    for _ in range(rounds):
        await asyncio.sleep(0)


async def test_tenants_take_turns():
    compiles = SlowCompiles()
    check = GrammarCheck(compiles)
    many = [
        asyncio.create_task(check.of("many").refusal(numbered(f"m{number}")))
        for number in range(MAX_WAITING_OF_ONE)
    ]
    await others_turn()
    few = asyncio.create_task(check.of("few").refusal(numbered("f")))
    await others_turn()
    for _ in range(2):
        compiles.go.release()
        await others_turn()
    assert '"f"' in compiles.tried[1]
    assert await few is None
    for _ in many:
        compiles.go.release()
    assert await asyncio.gather(*many) == [None] * len(many)
    assert len(compiles.tried) == len(many) + 1


async def test_whoever_waits_for_many_is_refused_and_nobody_else():
    compiles = SlowCompiles()
    check = GrammarCheck(compiles)
    waiting = [
        asyncio.create_task(check.of("many").refusal(numbered(f"m{number}")))
        for number in range(MAX_WAITING_OF_ONE)
    ]
    await others_turn()
    with pytest.raises(Overloaded):
        await check.of("many").refusal(numbered("one more"))
    waiting.append(asyncio.create_task(check.of("few").refusal(numbered("f"))))
    await others_turn()
    for _ in waiting:
        compiles.go.release()
    assert await asyncio.gather(*waiting) == [None] * len(waiting)
    compiles.go.release()
    assert await check.of("many").refusal(numbered("one more")) is None


async def test_a_crowd_that_asks_for_one_new_schema_waits_for_one_trial():
    """Without keys all are one tenant: of a program's hundred requests with its new schema most were refused."""
    compiles = SlowCompiles()
    check = GrammarCheck(compiles)
    crowd = [
        asyncio.create_task(check.refusal(numbered("x"))) for _ in range(4 * MAX_WAITING_OF_ONE)
    ]
    crowd.append(asyncio.create_task(check.of("another").refusal(numbered("x"))))
    await others_turn()
    crowd.pop(0).cancel()
    await others_turn()
    compiles.go.release()
    assert await asyncio.gather(*crowd) == [None] * len(crowd)
    assert len(compiles.tried) == 1


async def test_a_trial_that_fails_fails_for_all_who_asked_and_is_begun_anew():
    class Fails(SlowCompiles):
        async def refusal(self, constraint):
            await super().refusal(constraint)
            raise ModelUnavailable("a", "it cannot be tried", 1.0)

    compiles = Fails()
    check = GrammarCheck(compiles)
    crowd = [asyncio.create_task(check.refusal(numbered("x"))) for _ in range(50)]
    await others_turn()
    compiles.go.release()
    told = await asyncio.gather(*crowd, return_exceptions=True)
    assert {type(error) for error in told} == {ModelUnavailable}
    assert len(compiles.tried) == 1
    compiles.go.release()
    with pytest.raises(ModelUnavailable):
        await check.refusal(numbered("x"))
    assert len(compiles.tried) == 2


async def test_those_who_are_refused_are_told_different_times():
    compiles = SlowCompiles()
    check = GrammarCheck(compiles)
    waiting = [
        asyncio.create_task(check.refusal(numbered(f"m{number}")))
        for number in range(MAX_WAITING_OF_ONE)
    ]
    await others_turn()
    told = []
    for number in range(8):
        with pytest.raises(Overloaded) as refused:
            await check.refusal(numbered(f"late {number}"))
        told.append(refused.value.retry_after_s)
    assert told == sorted(set(told))
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_all_together_are_bounded(monkeypatch):
    monkeypatch.setattr(grammar_check, "MAX_WAITING", 4)
    compiles = SlowCompiles()
    check = GrammarCheck(compiles)
    waiting = [
        asyncio.create_task(check.of(f"t{number}").refusal(numbered(f"m{number}")))
        for number in range(4)
    ]
    await others_turn()
    with pytest.raises(Overloaded):
        await check.of("t5").refusal(numbered("f"))
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    compiles.go.release()
    assert await check.of("t5").refusal(numbered("f")) is None
    assert MAX_WAITING > MAX_WAITING_OF_ONE


async def test_a_verdict_is_everybodys():
    compiles = SlowCompiles()
    compiles.go.release()
    check = GrammarCheck(compiles)
    assert await check.of("a").refusal(numbered("x")) is None
    assert await check.of("b").refusal(numbered("x")) is None
    assert len(compiles.tried) == 1


async def test_without_a_compiler_there_is_none_for_anybody():
    check = GrammarCheck(None).of("t")
    assert not check.can_compile
    with pytest.raises(InvalidRequest, match="not supported"):
        await check.check(numbered("x"), "response_format")


async def test_whoever_took_much_processor_time_waits_and_nobody_else(monkeypatch):
    monkeypatch.setattr(grammar_check, "MOST_REST_S", 1e6)
    compiles = SlowCompiles()
    compiles.worked_s = 1e3
    check = GrammarCheck(compiles)
    for _ in range(2):
        compiles.go.release()
    assert await check.of("much").refusal(numbered("a")) is None
    again = asyncio.create_task(check.of("much").refusal(numbered("b")))
    await others_turn()
    assert await check.of("little").refusal(numbered("c")) is None
    assert [text for text in compiles.tried if '"b"' in text] == []
    assert await check.of("much").refusal(numbered("a")) is None  # what is known costs nothing
    again.cancel()
    await asyncio.gather(again, return_exceptions=True)


def test_what_real_schemas_take_is_waited_for_by_nobody():
    turns = Turns()
    for number in range(10_000):
        now_s = number * 0.008 / SHARE
        assert turns.rest_s(now_s) == 0.0
        turns.took(0.008, now_s)


def test_what_trials_took_is_paid_by_time():
    turns = Turns()
    turns.took(FREE_S + SHARE, 10.0)
    assert turns.rest_s(10.0) == pytest.approx(1.0)
    assert turns.rest_s(10.5) == pytest.approx(0.5)
    assert turns.rest_s(11.5) == 0.0
    assert turns.owed_s(1e3) == 0.0

"""Constraints are tried one at a time, tenants take turns, and nobody's many keep another's few waiting or out."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.edge.answers import grammar_check
from coordinator.edge.answers.grammar_check import (
    MAX_WAITING,
    MAX_WAITING_OF_ONE,
    GrammarCheck,
)
from protocol.constraints import json_schema
from protocol.errors import InvalidRequest, Overloaded


class SlowCompiles:
    """Each is tried until a test says `go`; `tried` are those that began."""

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

"""A list of many keys is told in turns: streams go on meanwhile."""

from __future__ import annotations

import asyncio

from coordinator.accounts.terms import KeyTerms, make_key
from coordinator.edge.operations.routes_keys import KEYS_A_TURN
from tests.unit.coordinator.edge.http.test_keys import bearer, edge


async def test_others_have_turns_while_many_keys_are_told(served_model, tmp_path):
    async with edge(served_model, tmp_path, admin_keys=["boss"]) as (client, accounts, _):
        asked = asyncio.create_task(client.get("/keys", headers=bearer("boss")))
        few = await turns_until(asked)
        for _ in range(8 * KEYS_A_TURN):
            accounts.book.put(make_key(KeyTerms(), 0.0).record)
        asked = asyncio.create_task(client.get("/keys", headers=bearer("boss")))
        assert await turns_until(asked) >= few + 8
        told = (await asked).json()["data"]
        assert {key["id"] for key in told} == {record.key_id for record in accounts.book}


async def turns_until(asked: asyncio.Task[object]) -> int:
    """How often others had the loop until then."""
    turns = 0
    while not asked.done():
        turns += 1
        await asyncio.sleep(0)
    return turns

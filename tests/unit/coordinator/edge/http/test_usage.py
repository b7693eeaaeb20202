"""`/usage` beside serving: a long question delays nobody but who asked it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from coordinator.accounts.terms import KeyTerms
from coordinator.accounts.usage import read_usage
from coordinator.edge.operations import routes_usage
from tests.patience import PATIENCE_S
from tests.unit.coordinator.edge.http.test_keys import COMPLETE, HELLO, bearer, edge


class Held:
    """Questions wait for `go`; `began` and `spelled` have the threads in which they are read and spelled."""

    def __init__(self):
        self.go = threading.Event()
        self.began: list[str] = []
        self.spelled: list[str] = []


@pytest.fixture
def held(monkeypatch):
    questions = Held()
    spell = routes_usage._csv

    def wait(database, query):
        questions.began.append(threading.current_thread().name)
        assert questions.go.wait(2 * PATIENCE_S)
        return read_usage(database, query)

    def spelled(page):
        questions.spelled.append(threading.current_thread().name)
        return spell(page)

    monkeypatch.setattr(routes_usage, "read_usage", wait)
    monkeypatch.setattr(routes_usage, "_csv", spelled)
    yield questions
    questions.go.set()


async def test_a_key_asks_one_question_at_a_time_and_delays_nobody(served_model, tmp_path, held):
    async with edge(served_model, tmp_path) as (client, accounts, _):
        one, other = [(await accounts.create(KeyTerms())).secret for _ in range(2)]
        asked = asyncio.create_task(client.get("/usage?format=csv", headers=bearer(one)))
        while not held.began:  # noqa: ASYNC110 - a thread tells
            await asyncio.sleep(0.001)
        twice = await client.get("/usage", headers=bearer(one))
        assert twice.status_code == 429
        assert twice.headers["retry-after"] == "1"
        waiting = asyncio.create_task(client.get("/usage", headers=bearer(other)))
        async with asyncio.timeout(PATIENCE_S):
            reply = await client.post(COMPLETE, json=HELLO, headers=bearer(one))
            assert reply.status_code == 200
            made = await accounts.create(KeyTerms())
            await accounts.revoke(made.record.key_id)
        assert not asked.done()
        held.go.set()
        assert (await asked).status_code == (await waiting).status_code == 200
        told = (await client.get("/usage", headers=bearer(one))).json()
        assert sum(row["requests"] for row in told["data"]) == 1
    assert set(held.began) == {"usage_0"}
    assert held.spelled == ["usage_0"]


async def test_whoever_reads_usage_cannot_write(served_model, tmp_path):
    async with edge(served_model, tmp_path) as (_, accounts, _):
        with pytest.raises(Exception, match="readonly"):
            await accounts.read("k", lambda found: found.connection.execute("DELETE FROM usage"))
        assert await accounts.read("k", lambda found: found.is_writable) is False

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


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ("from=0001-01-01", "from"),
        ("to=0001-01-01T00:00:00", "to"),
        ("from=10000-01-01", "from"),
        ("from=1e999", "from"),
        ("to=nan", "to"),
        ("from=", "from"),
        ("group_by=" + "key," * 1500 + "key", "group_by"),
        ("group_by=key,key", "group_by"),
        ("group_by=request,request", "group_by"),
        ("after=-1", "after"),
        ("after=" + "9" * 19, "after"),
        ("limit=0", "limit"),
        ("limit=%00", "limit"),
        ("format=xml", "format"),
        ("nothing=1", "nothing"),
    ],
)
async def test_what_cannot_be_asked_is_refused_by_its_name(served_model, tmp_path, asked, param):
    async with edge(served_model, tmp_path) as (client, accounts, _):
        key = (await accounts.create(KeyTerms())).secret
        reply = await client.get(f"/usage?{asked}", headers=bearer(key))
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "asked",
    ["from=9999-12-31", "to=-1e300", "from=20261129", "after=" + "9" * 18, "key=%00", "model=%ff"],
)
async def test_odd_questions_have_answers(served_model, tmp_path, asked):
    async with edge(served_model, tmp_path) as (client, accounts, _):
        key = (await accounts.create(KeyTerms(scopes=("admin",)))).secret
        reply = await client.get(f"/usage?{asked}", headers=bearer(key))
        assert (reply.status_code, reply.json()["data"]) == (200, [])

"""Requests that go elsewhere in the ledger: each once, with what its client was told, whatever the servers did."""

from __future__ import annotations

import asyncio
import gzip
import random
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest

from coordinator.accounts.accounts import Accounts, AccountSettings
from coordinator.accounts.terms import KeyTerms
from protocol.clock import SystemClock
from tests.unit.coordinator.edge.gateway.scripted_upstream import (
    DONE,
    STREAM,
    chunk,
    endless,
    hang,
    openai_answer,
    reply,
    stream,
    upstream,
    usage,
)
from tests.unit.coordinator.edge.gateway.test_model_groups import BROKEN, HELLO, edge, entry

SLOW_S = 0.05
ASKED = {"model": "g", "messages": HELLO, "max_tokens": 20}


async def booked(served_model, tmp_path, entries, requests, terms=None, router=None):
    """Send them with a key of its own; returns answers and rows."""
    accounts = Accounts.open(AccountSettings(tmp_path / "keys.db"), SystemClock())
    accounts.start(asyncio.get_running_loop())
    key = (await accounts.create(terms or KeyTerms())).secret
    options: dict[str, Any] = {"accounts": accounts, "admin_keys": ["boss"], "router": router}
    options["clock"] = SystemClock()
    async with edge(served_model, tmp_path, *entries, **options) as client:
        answers = await requests(client, {"authorization": f"Bearer {key}"})
        boss = {"authorization": "Bearer boss"}
        rows = await all_rows(client, boss)
        view = (await client.get("/cluster/deployments", headers=boss)).json()["data"]
    await accounts.close()
    return answers, rows, view


async def all_rows(client, headers):
    """Of every request, page by page."""
    rows: list[dict[str, Any]] = []
    query = {"group_by": "request"}
    while True:
        page = (await client.get("/usage", headers=headers, params=query)).json()
        rows += page["data"]
        if page["next_after"] is None:
            return rows
        query["after"] = str(page["next_after"])


def one(**fields):
    async def requests(client, headers):
        body = ASKED | fields
        return [await client.post("/v1/chat/completions", json=body, headers=headers)]

    return requests


async def test_an_answer_from_elsewhere_is_booked_as_it_says(served_model, tmp_path):
    async with upstream(openai_answer("Hi", " there", prompt=70, cached=8)) as server:
        _, rows, _ = await booked(served_model, tmp_path, [entry(server)], one())
    (row,) = rows
    assert (row["input_tokens"], row["cached_tokens"], row["output_tokens"]) == (70, 8, 2)
    assert (row["model"], row["end"]) == ("g", "stop")


async def test_one_that_was_made_twice_is_booked_once(served_model, tmp_path):
    async with upstream(BROKEN["500"]) as bad, upstream(openai_answer("x")) as good:
        entries = [entry(bad, order=1), entry(good, order=2)]
        _, rows, _ = await booked(served_model, tmp_path, entries, one())
    assert [row["output_tokens"] for row in rows] == [1]


async def test_one_that_nobody_answered_costs_nothing(served_model, tmp_path):
    async with upstream(BROKEN["500"]) as bad:
        answers, rows, _ = await booked(served_model, tmp_path, [entry(bad)], one())
    assert answers[0].status_code == 502
    assert [(row["input_tokens"], row["output_tokens"]) for row in rows] == [(0, 0)]
    assert rows[0]["end"] == "error"


async def test_a_cut_stream_is_booked_as_far_as_it_was_told(served_model, tmp_path):
    cut = stream(chunk({"content": "a"}), chunk({"content": "b"}))
    async with upstream(cut) as bad:
        _, rows, _ = await booked(served_model, tmp_path, [entry(bad)], one(stream=True))
    assert [(row["output_tokens"], row["end"]) for row in rows] == [(2, "error")]


async def test_a_keys_limits_hold_for_other_servers_too(served_model, tmp_path):
    async def requests(client, headers):
        asked = [client.post("/v1/chat/completions", json=ASKED, headers=headers) for _ in "abcdef"]
        return await asyncio.gather(*asked)

    terms = KeyTerms(requests_per_minute=2)
    async with upstream(openai_answer("x")) as server:
        answers, rows, _ = await booked(served_model, tmp_path, [entry(server)], requests, terms)
    assert Counter(answer.status_code for answer in answers) == {200: 2, 429: 4}
    assert (len(rows), len(server.asked)) == (2, 2)


async def test_a_key_may_not_reach_by_fallback_what_it_may_not_use(served_model, tmp_path):
    router = {"fallbacks": [{"g": ["h"]}]}
    async with upstream(BROKEN["500"]) as bad, upstream(openai_answer("x")) as good:
        entries = [entry(bad), entry(good, "h")]
        answers, _, _ = await booked(
            served_model, tmp_path, entries, one(), KeyTerms(models=("g",)), router
        )
    assert answers[0].status_code == 502
    assert good.asked == []


async def slow(told, writer):
    """A good answer that takes its time, piece by piece."""
    pieces = [chunk({"content": "a"}), chunk({"content": "b"}), chunk(finish_reason="stop")]
    loop = asyncio.get_running_loop()

    async def act(one):
        over = asyncio.Event()
        loop.call_later(SLOW_S, over.set)
        await over.wait()
        writer.write(one)
        await writer.drain()

    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    for one in (*pieces, usage(5, 2), DONE):
        await act(one)


def moods(seed, count):
    """Mostly good answers; now and then everything that can go wrong."""
    chosen = random.Random(seed)
    packed = {"content_type": STREAM, "content_encoding": "gzip"}
    odd = [
        slow,
        endless(chunk({"content": "again"})),
        endless(b": nothing yet\n\n"),
        stream(chunk({"content": "once"}), b'data: {"choices": [{"ind'),
        reply(200, gzip.compress(DONE), **packed),
        reply(200, {"choices": []}, content_type="application/json"),
        reply(429, b"", retry_after_ms="10"),
        BROKEN["500"],
        BROKEN["nonsense"],
        BROKEN["cut"],
        BROKEN["redirect"],
        stream(chunk({"content": "once"})),
        reply(503, b""),
        hang,
    ]
    return [
        chosen.choice(odd) if chosen.random() < 0.02 else openai_answer("a", "b", prompt=5)
        for _ in range(count)
    ]


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.deep)])
async def test_nothing_is_lost_and_nothing_booked_twice(served_model, tmp_path, count):
    """Three servers with weights that misbehave, sixteen clients; shares of what was sent are as wanted but for what was
    tried again, or not sent to one that was left alone."""
    weights = (5, 3, 2)

    async def requests(client, headers):
        waiting, answers = list(range(count)), []

        async def work():
            while waiting:
                body = ASKED | {"stream": waiting.pop() % 2 == 0}
                answers.append(
                    await client.post("/v1/chat/completions", json=body, headers=headers)
                )

        await asyncio.gather(*(work() for _ in range(16)))
        return answers

    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(upstream(*moods(seed, 2 * count)))
            for seed in range(len(weights))
        ]
        entries = [
            entry(server, weight=weight, stream_timeout=5)
            for server, weight in zip(servers, weights, strict=True)
        ]
        router = {"num_retries": 4, "cooldown_time": 0.01}
        answers, rows, view = await booked(served_model, tmp_path, entries, requests, router=router)
    assert len(answers) == len(rows) == count
    assert len({row["request_id"] for row in rows}) == count
    told = Counter(_ending(answer) for answer in answers)
    assert told["lost"] == 0
    assert set(told) <= {"whole", "cut", 429}
    assert told[429] <= count / 100
    ends = Counter(row["end"] for row in rows)
    assert ends["stop"] == told["whole"]
    assert sum(row["output_tokens"] for row in rows if row["end"] == "stop") == 2 * told["whole"]
    sent = [one["requests"] for one in view]
    for weight, number in zip(weights, sent, strict=True):
        assert number / sum(sent) == pytest.approx(weight / sum(weights), abs=0.02)
    assert [one["running"] for one in view] == [0, 0, 0]


def _ending(answer):
    if answer.status_code != 200:
        return answer.status_code
    if answer.headers["content-type"].startswith("application/json"):
        usage = answer.json()["usage"]
        return "whole" if usage["completion_tokens"] == 2 else "lost"
    *_, last, done, _ = answer.text.split("\n\n")
    assert done == "data: [DONE]"
    told = orjson.loads(last.removeprefix("data: "))
    if "error" in told:
        return "cut"
    return "whole" if told["choices"][0]["finish_reason"] == "stop" else "lost"

"""SIGKILL at any instant: the ledger holds the usage of the answers that clients have, each once; limits go on."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest

from coordinator.accounts.database import open_database
from coordinator.accounts.terms import KeyTerms, make_key
from protocol.clock import wall_time_s
from tests.marks import deep
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
CLIENTS, MOST_ANSWERS = 8, 80


@contextmanager
def server(directory: Path, database: Path, environment: dict[str, str] | None = None, **options):
    """One life of an edge: its process and its URL."""
    told = json.dumps({"keys_db": str(database)} | options)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.edge_server", str(directory), told],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
    )
    try:
        assert process.stdout is not None
        yield process, f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.communicate(timeout=PATIENCE_S)


def new_key(database: Path, **terms) -> str:
    opened = open_database(database)
    made = make_key(KeyTerms(**terms), wall_time_s())
    opened.put_key(made.record)
    opened.close()
    return made.secret


def rows(database: Path) -> list[tuple[str, int, int, str]]:
    with sqlite3.connect(database) as connection:
        told = "SELECT request_id, input_tokens, output_tokens, end FROM usage"
        return connection.execute(told).fetchall()


async def ask(session, url, chance, delivered) -> None:
    """One answer, noted when all of it is here."""
    num_tokens, is_stream = chance.choice((1, 1, 2, 3)), chance.random() < 0.5
    body = {"prompt": "Hello", "max_tokens": num_tokens, "stream": is_stream}
    if is_stream:
        body["stream_options"] = {"include_usage": True}
    async with session.post(f"{url}/v1/completions", json=body) as reply:
        told = await reply.read()
        assert reply.status == 200, told
    if is_stream:
        told = told.split(b"data: ")[-2]
    answer = json.loads(told)
    usage = answer["usage"]
    delivered[answer["id"]] = (usage["prompt_tokens"], usage["completion_tokens"])


async def ask_until_it_dies(process, url, headers, chance, delivered) -> None:
    """It is killed at some instant after some answers."""
    loop, last = asyncio.get_running_loop(), len(delivered) + chance.randrange(1, MOST_ANSWERS)
    async with aiohttp.ClientSession(headers=headers) as session:

        async def client() -> None:
            while True:
                try:
                    await ask(session, url, chance, delivered)
                except aiohttp.ClientError:
                    return
                if len(delivered) == last:
                    loop.call_later(chance.uniform(0.0, 0.03), process.send_signal, signal.SIGKILL)

        await asyncio.gather(*(client() for _ in range(CLIENTS)))


async def lives(directory, database, num_lives, seed):
    """So many processes, each killed at its own instant; what clients have of them all."""
    chance = random.Random(seed)
    delivered: dict[str, tuple[int, int]] = {}
    headers = {"authorization": f"Bearer {new_key(database)}"}
    for _ in range(num_lives):
        with server(directory, database) as (process, url):
            await ask_until_it_dies(process, url, headers, chance, delivered)
    with server(directory, database):
        pass
    return delivered


async def check(directory, database, num_lives, seed):
    delivered = await lives(directory, database, num_lives, seed)
    booked = [row for row in rows(database) if row[3] != "crashed"]
    assert len(delivered) > 10 * num_lives
    assert len(booked) == len({row[0] for row in booked})
    assert {name: (got, said) for name, got, said, _ in booked} == delivered
    assert all(row[1] == row[2] == 0 for row in rows(database) if row[3] == "crashed")


@pytest.mark.parametrize("num_lives", [3, deep(6)])
async def test_the_ledger_is_the_usage_of_delivered_answers(tmp_path, num_lives):
    await check(tmp_path, tmp_path / "keys.db", num_lives, 1)


@pytest.mark.deep
@pytest.mark.parametrize("seed", [2])
async def test_so_it_is_after_many_more_lives(tmp_path, seed):
    await check(tmp_path, tmp_path / "keys.db", 50, seed)


async def test_limits_are_kept_over_a_crash(tmp_path):
    database = tmp_path / "keys.db"
    secret = new_key(database, requests_per_minute=20)
    headers = {"authorization": f"Bearer {secret}"}
    statuses: list[int] = []
    for _ in range(3):
        with server(tmp_path, database, is_short=True) as (process, url):
            async with aiohttp.ClientSession(headers=headers) as session:

                async def one(session=session, url=url) -> None:
                    body = {"prompt": "Hello", "max_tokens": 1}
                    async with session.post(f"{url}/v1/completions", json=body) as reply:
                        await reply.read()
                        statuses.append(reply.status)

                await asyncio.gather(*(one() for _ in range(9)))
            process.send_signal(signal.SIGKILL)
    assert statuses.count(200) == 20
    assert statuses.count(429) == 7


CROWD, MINUTE_S = 64, 60.0


class Got(NamedTuple):
    """An answer that a client has: when it was asked for and when it was here, and its tokens."""

    asked_s: float
    here_s: float
    tokens: int


async def ask_as_a_crowd(process, url, headers, chance, delivered) -> None:
    """Sixty-four clients at once, each again and again until all are refused or the server is killed amid them."""
    loop, due = asyncio.get_running_loop(), chance.randrange(1, CROWD)

    async def client(session) -> None:
        try:
            while True:
                body = {"prompt": "Hello", "max_tokens": chance.randrange(1, 4)}
                asked_s = loop.time()
                async with session.post(f"{url}/v1/completions", json=body) as reply:
                    told = await reply.read()
                    if reply.status != 200:
                        assert reply.status == 429, told
                        return
                tokens = json.loads(told)["usage"]["total_tokens"]
                delivered.append(Got(asked_s, loop.time(), tokens))
                if len(delivered) % CROWD == due:
                    loop.call_later(chance.uniform(0.0, 0.01), process.send_signal, signal.SIGKILL)
        except aiohttp.ClientError:
            return

    connector = aiohttp.TCPConnector(limit=CROWD)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        await asyncio.gather(*(client(session) for _ in range(CROWD)))


def most_in_a_minute(delivered: list[Got], amounts: list[int]) -> int:
    """Of what was asked for and was here within one minute, from each answer on."""
    return max(
        sum(
            amount
            for got, amount in zip(delivered, amounts, strict=True)
            if first.asked_s <= got.asked_s and got.here_s < first.asked_s + MINUTE_S
        )
        for first in delivered
    )


@pytest.mark.deep
@pytest.mark.parametrize(
    "terms",
    [{"requests_per_minute": 150}, {"tokens_per_minute": 1000}, {"budget_tokens": 1000}],
    ids=lambda terms: next(iter(terms)),
)
async def test_a_crowd_never_gets_more_over_crashes(tmp_path, terms):
    database, chance = tmp_path / "keys.db", random.Random(7)
    headers = {"authorization": f"Bearer {new_key(database, **terms)}"}
    delivered: list[Got] = []
    for _ in range(4):
        with server(tmp_path, database, is_short=True) as (process, url):
            await ask_as_a_crowd(process, url, headers, chance, delivered)
            process.send_signal(signal.SIGKILL)
    with server(tmp_path, database):
        pass
    ((name, limit),) = terms.items()
    tokens = [got.tokens for got in delivered]
    if name == "budget_tokens":
        assert sum(tokens) <= limit
    else:
        asked = [1] * len(tokens) if name == "requests_per_minute" else tokens
        assert most_in_a_minute(delivered, asked) <= limit
    booked = [row for row in rows(database) if row[3] != "crashed"]
    assert (len(booked), sum(row[1] + row[2] for row in booked)) == (len(tokens), sum(tokens))

"""A real `baton serve` with keys: made by `baton keys`, kept over a death of the coordinator, booked in one ledger."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import threading

import httpx
import pytest

from tests.e2e.server import BATON, MOCK, Server
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.e2e


def keys(*words: str) -> str:
    done = subprocess.run([BATON, "keys", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return str(tmp_path_factory.mktemp("keys") / "keys.db")


@pytest.fixture(scope="module")
def server(database):
    options = ("--keys-db", database, "--price", "smollm2-135m=1/2", "--ledger-failure", "refuse")
    with Server(*options, program=MOCK) as started:
        yield started


def complete(server, key: str, **body) -> httpx.Response:
    told = {"prompt": "Hello", "max_tokens": 4, "ignore_eos": True} | body
    headers = {"authorization": f"Bearer {key}"}
    return server.client.post("/v1/completions", json=told, headers=headers)


def await_status(server, key: str, status: int) -> httpx.Response:
    """Another process's change of the file is seen within a second."""
    waiter = threading.Event()
    for _ in range(300):
        try:
            reply = complete(server, key)
            if reply.status_code == status:
                return reply
        except httpx.TransportError:
            pass
        waiter.wait(0.1)
    raise AssertionError(f"never {status}: {reply.status_code} {reply.text}")


def test_keys_open_rotate_and_close_while_it_serves(server, database):
    assert complete(server, "none").status_code == 401
    made = json.loads(keys("create", "--keys-db", database, "--tenant", "acme", "--json"))
    await_status(server, made["key"], 200)
    second = keys("rotate", made["id"], "--keys-db", database)
    await_status(server, second, 200)
    assert complete(server, made["key"]).status_code == 401
    boss = keys("create", "--keys-db", database, "--scopes", "admin")
    asked = ("--url", server.url, "--admin-api-key", boss)
    await_status(server, boss, 403)
    listed = keys("list", "--json", *asked)
    own = boss.removeprefix("sk-baton-").partition(".")[0]
    assert {key["tenant"] for key in json.loads(listed)} == {"acme", own}
    assert second not in listed
    shown = json.loads(keys("show", made["id"], *asked))
    assert shown["state"] == "active"
    keys("revoke", made["id"], *asked)
    assert complete(server, second).status_code == 401


def test_a_death_of_the_coordinator_forgets_no_limit_and_no_usage(server, database):
    key = keys("create", "--keys-db", database, "--tenant", "b", "--requests-per-minute", "6")
    told = [await_status(server, key, 200).json()["usage"]]
    told += [complete(server, key).json()["usage"] for _ in range(3)]
    os.kill(server.coordinator_pid(), signal.SIGKILL)
    told += [await_status(server, key, 200).json()["usage"]]
    told += [complete(server, key).json()["usage"]]
    refused = complete(server, key)
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= 60
    reply = server.client.get("/usage", headers={"authorization": f"Bearer {key}"})
    (row,) = reply.json()["data"]
    assert row["requests"] == 6
    assert row["input_tokens"] == sum(usage["prompt_tokens"] for usage in told)
    assert row["output_tokens"] == sum(usage["completion_tokens"] for usage in told)
    nano = 1000 * row["input_tokens"] + 2000 * row["output_tokens"]
    assert row["cost"] == f"0.{nano:09d}"
    with sqlite3.connect(database) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_second_server_on_the_file_is_refused(server, database):
    command = [*MOCK, "serve", "--keys-db", database, "--port", "0"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode != 0
    assert "another server uses" in done.stderr + done.stdout

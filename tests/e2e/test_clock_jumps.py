"""A wall clock that is set, far ahead and far back, under a process that serves and between two: keys, windows, budgets, entries.

The process's wall clock is its own (`wall_detour.c`); its monotonic one is the machine's.
"""

from __future__ import annotations

import shutil
import signal
import sqlite3
import struct
import subprocess
from pathlib import Path

import httpx
import pytest

from protocol.clock import wall_time_s
from tests.e2e.test_ledger_crashes import new_key, server
from tests.patience import PATIENCE_S

COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.deep,
    pytest.mark.skipif(COMPILER is None, reason="no C compiler for the detour"),
]
HERE = Path(__file__).parent
HOUR_S, DAY_S, YEAR_S = 3600.0, 86400.0, 365 * 86400.0
BOSS = {"app": {"admin_keys": ["boss"]}, "is_short": True}


class Wall:
    """The wall clock of one process after another."""

    def __init__(self, directory: Path) -> None:
        library, self._file = directory / "wall_detour.so", directory / "ahead"
        assert COMPILER is not None
        source = str(HERE / "wall_detour.c")
        subprocess.run(
            [COMPILER, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl", "-lm"], check=True
        )
        self.environment = {"LD_PRELOAD": str(library), "BATON_WALL": str(self._file)}
        self.set_ahead(0.0)

    def set_ahead(self, seconds: float) -> None:
        """In place: processes have mapped the file."""
        with self._file.open("r+b" if self._file.exists() else "wb") as opened:
            opened.write(struct.pack("d", seconds))


@pytest.fixture
def wall(tmp_path):
    return Wall(tmp_path)


class Asker:
    """One client of a process; a connection for each request, so that none outlives a death."""

    def __init__(self, url: str) -> None:
        self._url = url

    def complete(self, key: str) -> httpx.Response:
        body = {"prompt": "Hello", "max_tokens": 1}
        headers = {"authorization": f"Bearer {key}"}
        url = f"{self._url}/v1/completions"
        return httpx.post(url, json=body, headers=headers, timeout=PATIENCE_S)

    def operate(self, method: str, path: str, **body) -> dict:
        headers = {"authorization": "Bearer boss"}
        url = self._url + path
        reply = httpx.request(method, url, json=body, headers=headers, timeout=PATIENCE_S)
        assert reply.status_code == 200, reply.text
        return reply.json()


def entries(database: Path) -> list[float]:
    with sqlite3.connect(database) as connection:
        return [row[0] for row in connection.execute("SELECT ended_at FROM usage ORDER BY rowid")]


def test_setting_the_clock_moves_no_window_and_no_budget_over_a_crash_neither(tmp_path, wall):
    database = tmp_path / "keys.db"
    windowed = new_key(database, requests_per_minute=2)
    with server(tmp_path, database, wall.environment, **BOSS) as (process, url):
        asker, waits_s = Asker(url), [60]
        assert [asker.complete(windowed).status_code for _ in "ab"] == [200, 200]
        for ahead_s in (0.0, DAY_S, -YEAR_S, HOUR_S):
            wall.set_ahead(ahead_s)
            refused = asker.complete(windowed)
            assert refused.status_code == 429, ahead_s
            waits_s.append(int(refused.headers["retry-after"]))
        process.send_signal(signal.SIGKILL)
    for ahead_s in (YEAR_S, -DAY_S):
        wall.set_ahead(ahead_s)
        with server(tmp_path, database, wall.environment, **BOSS) as (process, url):
            refused = Asker(url).complete(windowed)
            assert refused.status_code == 429, ahead_s
            waits_s.append(int(refused.headers["retry-after"]))
            process.send_signal(signal.SIGKILL)
    assert all(0 < wait_s <= 120 for wait_s in waits_s)


def test_a_budget_has_its_period_and_no_earlier_one(tmp_path, wall):
    """A request is 6 tokens. While a process lives its periods go on as its monotonic clock does; a start asks the wall."""
    database = tmp_path / "keys.db"
    key = new_key(database, budget_tokens=6, budget_period_s=HOUR_S)
    with server(tmp_path, database, wall.environment, **BOSS) as (process, url):
        asker = Asker(url)
        assert asker.complete(key).status_code == 200
        for ahead_s in (0.0, DAY_S, -YEAR_S):
            wall.set_ahead(ahead_s)
            refused = asker.complete(key)
            assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
            assert int(refused.headers["retry-after"]) <= HOUR_S
        process.send_signal(signal.SIGKILL)
    told = []
    for ahead_s in (-YEAR_S, 2 * HOUR_S, 0.0, 2 * HOUR_S, 4 * HOUR_S):
        wall.set_ahead(ahead_s)
        with server(tmp_path, database, wall.environment, **BOSS) as (process, url):
            told.append([Asker(url).complete(key).status_code for _ in "ab"])
            process.send_signal(signal.SIGKILL)
    # a year ago, and now again, no period has begun that was not there; two hours on there is one, once; four, another
    assert told == [[429, 429], [200, 429], [429, 429], [429, 429], [200, 429]]


def test_an_entry_is_of_the_time_that_the_process_began_with(tmp_path, wall):
    database, began_at = tmp_path / "keys.db", wall_time_s()
    key = new_key(database)
    with server(tmp_path, database, wall.environment, **BOSS) as (_, url):
        asker = Asker(url)
        for ahead_s in (0.0, DAY_S, -YEAR_S):
            wall.set_ahead(ahead_s)
            assert asker.complete(key).status_code == 200
    assert all(began_at <= at_s <= wall_time_s() for at_s in entries(database))


def test_a_key_ends_by_the_later_of_both_clocks(tmp_path, wall):
    with server(tmp_path, tmp_path / "keys.db", wall.environment, **BOSS) as (_, url):
        asker = Asker(url)
        key = asker.operate("POST", "/keys", expires_in_s=HOUR_S)["key"]
        for ahead_s, status in ((0.0, 200), (-YEAR_S, 200), (2 * HOUR_S, 401)):
            wall.set_ahead(ahead_s)
            assert asker.complete(key).status_code == status, ahead_s
        # made now, by a clock that was set while this process ran
        key = asker.operate("POST", "/keys", expires_in_s=HOUR_S)["key"]
        assert asker.complete(key).status_code == 200


def test_a_former_secret_is_good_as_long_as_was_said_however_the_clock_was_set(tmp_path, wall):
    """A machine that began with a wrong clock and was put right: the grace is counted from now, not from then."""
    with server(tmp_path, tmp_path / "keys.db", wall.environment, **BOSS) as (_, url):
        asker = Asker(url)
        wall.set_ahead(DAY_S)
        made = asker.operate("POST", "/keys", tenant="a")
        second = asker.operate("POST", f"/keys/{made['id']}/rotate", grace_s=HOUR_S)
        assert [asker.complete(one["key"]).status_code for one in (made, second)] == [200, 200]
        wall.set_ahead(DAY_S + 2 * HOUR_S)
        assert [asker.complete(one["key"]).status_code for one in (made, second)] == [401, 200]

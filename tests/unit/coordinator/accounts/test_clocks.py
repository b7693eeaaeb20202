"""What ends at an instant, when the machine's clock is set under a process: expiry and the grace of a rotation.

Windows and budgets are in `test_limits.py`; a process whose clock is set is in `tests/e2e/test_clock_jumps.py`.
"""

from __future__ import annotations

import asyncio

import pytest

from coordinator.accounts.accounts import Accounts, AccountSettings
from coordinator.accounts.terms import KeyTerms
from protocol.clock import ManualClock

BEGAN_AT = 1_000_000.0


class Times:
    """Both clocks of a machine; `wall_s` is set by somebody."""

    def __init__(self) -> None:
        self.clock = ManualClock(500.0)
        self.wall_s = BEGAN_AT


@pytest.fixture
def times(monkeypatch):
    made = Times()
    monkeypatch.setattr("coordinator.accounts.accounts.wall_time_s", lambda: made.wall_s)
    return made


@pytest.fixture
async def accounts(tmp_path, times):
    # SteadyWall's own default was bound before: it begins with the machine's clock, as `BEGAN_AT` here
    opened = Accounts.open(AccountSettings(tmp_path / "keys.db"), times.clock)
    opened._wall._ahead_s = BEGAN_AT - times.clock.now_s()
    opened.start(asyncio.get_running_loop())
    yield opened
    await opened.close()


def opens(accounts, secret) -> bool:
    now_s = accounts.key_now_s()
    record = accounts.book.find(secret, now_s)
    return record is not None and not record.trouble(now_s)


async def test_a_clock_that_is_set_back_opens_no_key_again(accounts, times):
    made = await accounts.create(KeyTerms(expires_at=BEGAN_AT + 100))
    times.wall_s -= 10_000
    assert opens(accounts, made.secret)
    times.clock.advance(101)
    assert not opens(accounts, made.secret)


async def test_a_clock_that_is_set_ahead_ends_a_key(accounts, times):
    made = await accounts.create(KeyTerms(expires_at=BEGAN_AT + 100))
    times.wall_s += 101
    assert not opens(accounts, made.secret)


@pytest.mark.parametrize("ahead_s", [-10_000.0, 0.0, 10_000.0])
async def test_a_former_secret_has_its_grace_from_the_rotation_on(accounts, times, ahead_s):
    made = await accounts.create(KeyTerms())
    times.wall_s += ahead_s
    await accounts.rotate(made.record.key_id, 60.0)
    assert opens(accounts, made.secret)
    times.clock.advance(61)
    times.wall_s += 61
    assert not opens(accounts, made.secret)

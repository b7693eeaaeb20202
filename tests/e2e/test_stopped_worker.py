"""SIGTERM to one worker process of a server: it drains and comes back, whoever sent it; real processes, every token checked."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest

from tests.e2e.crowd import Crowd
from tests.e2e.server import MOCK, PACED, Server
from tests.e2e.test_scaling import ARGUMENTS, is_gone, is_shape, is_streaming, settle
from tests.marks import deep
from tests.patience import in_time, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

GRACE_S = 20.0
"""A worker that drains has so long for what it writes."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(
        "--pd", "2p2d", "--drain-grace", f"{GRACE_S:g}", *ARGUMENTS, program=PACED
    ) as server:
        yield server


def replays(server: Server) -> int:
    return int(server.cluster()["replays"])


@pytest.mark.parametrize("role", ["prefill", deep("decode")])
def test_a_worker_that_is_told_to_end_drains_and_comes_back(server: Server, role: str) -> None:
    before = replays(server)
    with Crowd(server.url, 40) as crowd:
        until(lambda: is_streaming(server, 30), "the load")
        victim = server.worker(role)
        os.kill(victim["pid"], signal.SIGTERM)
        until(lambda: is_gone(victim["pid"]), "its end")
        until(lambda: is_shape(server, 2, 2), "its new start")
        crowd.await_more(60)
    assert crowd.failures == []
    assert replays(server) == before
    settle(server)
    assert server.cluster()["target"] == {"prefill": 2, "decode": 2}
    assert re.search(f"{victim['id']} .*ended as it was told to; starting it again", server.log())


@pytest.mark.deep
def test_a_second_signal_ends_it_at_once_and_loses_nothing(server: Server) -> None:
    with Crowd(server.url, 40, (80, 120)) as crowd:
        until(lambda: is_streaming(server, 30), "the load")
        victim = server.worker("decode")
        os.kill(victim["pid"], signal.SIGTERM)
        until(lambda: f"{victim['id']} was told to end" in server.log(), "that it was heard")
        os.kill(victim["pid"], signal.SIGTERM)
        assert until(lambda: is_gone(victim["pid"]), "its end") < GRACE_S / 2
        until(lambda: is_shape(server, 2, 2), "its new start")
        crowd.await_more(20)
    assert crowd.failures == []
    settle(server)


def test_the_only_workers_end_one_after_the_other_and_nothing_is_lost() -> None:
    with (
        Server("--pd", "1p1d", *ARGUMENTS, program=MOCK) as server,
        Crowd(server.url, 20) as crowd,
    ):
        for role in ("decode", "prefill"):
            victim = server.worker(role)
            os.kill(victim["pid"], signal.SIGTERM)
            until(lambda pid=victim["pid"]: is_gone(pid), "its end")  # type: ignore[misc]
            until(lambda: is_shape(server, 1, 1), "its new start")
            crowd.await_more(20)
    assert crowd.failures == []


def test_a_server_ends_as_fast_as_before() -> None:
    def attempt() -> float:
        with Server("--pd", "1p1d", *ARGUMENTS, program=PACED) as server:
            with Crowd(server.url, 10):
                pass
            return server.interrupt()

    in_time(attempt, 2.0)

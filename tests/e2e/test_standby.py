"""Standby processes: who is ordered, woken or restarted is one of them, computes the same tokens, and another one waits."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.crowd import mock_root, stream_one
from tests.e2e.server import MOCK, Server
from tests.e2e.test_scaling import asked, is_shape, scale, settle
from tests.patience import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
FLAGS = ("--dtype", "float32", "--kv-cache-memory", "64MiB", "--standby-workers", "1")


def standbys(server: Server) -> list[int]:
    """Processes that wait for an order."""
    found = []
    for pid in server.descendants():
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if b"standby.json" in line:
            found.append(pid)
    workers = {worker["pid"] for worker in server.cluster()["workers"]}
    return [pid for pid in found if pid not in workers]


def pids_of(server: Server) -> dict[str, int]:
    """By worker."""
    return {worker["id"]: worker["pid"] for worker in server.cluster()["workers"]}


def is_one(server: Server) -> bool:
    """Whether exactly one waits."""
    return len(standbys(server)) == 1


def test_orders_and_crashes_are_answered_by_the_standby() -> None:
    with Server("--pd", "1p1d", *FLAGS, program=MOCK) as server:
        until(lambda: is_one(server), "the standby")
        (first,) = standbys(server)
        scale(server, decode=2)
        until(lambda: is_shape(server, 1, 2), "the second decode worker")
        pids = pids_of(server)
        assert pids["decode-1"] == first
        until(lambda: is_one(server), "another standby")
        (second,) = standbys(server)
        os.kill(pids["prefill-0"], signal.SIGKILL)
        until(lambda: pids_of(server).get("prefill-0") == second, "the worker in its place")
        until(lambda: is_shape(server, 1, 2), "1p2d again")
        question = asked(1, 100, 8)
        assert stream_one(server.url, question) == question.expected(mock_root())
        until(lambda: is_one(server), "a third standby")
        (third,) = standbys(server)
        os.kill(third, signal.SIGKILL)
        until(lambda: is_one(server) and standbys(server) != [third], "a fourth standby")
        settle(server)


@pytest.mark.deep
def test_a_wake_from_zero_is_a_standby() -> None:
    ranges = ("--autoscale", "prefill=0..1,decode=0..1,total=1,idle=2", "--slo", "ttft:60000")
    with Server("--pd", "0p1d", *ranges, "tpot:1000", *FLAGS, program=MOCK) as server:
        until(lambda: is_shape(server, 0, 0) and is_one(server), "an idle model")
        (waiting,) = standbys(server)
        question = asked(2, 60, 8)
        assert stream_one(server.url, question) == question.expected(mock_root())
        assert server.worker("decode")["pid"] == waiting

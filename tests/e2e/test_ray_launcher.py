"""`--launcher ray` on one machine, over a Ray of our own: serving, every kind of loss, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.e2e.ray_rig import Load, RayServer, gone
from tests.marks import deep
from tests.patience import until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.xdist_group("ray"),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs baton-serve[ray]"),
]
BOTH = ("prefill-0", "decode-0")


@pytest.fixture(scope="module")
def server() -> Iterator[RayServer]:
    with RayServer("--ray-address", "local", "--pd", "1p1d") as server:
        yield server


def test_banner_says_where_everything_runs(server: RayServer) -> None:
    server.say("nodes ")
    log = server.log()
    assert re.search(r"launcher\s+ray 2\.\d+\.\d+ at 127\.0\.0\.1:\d+ \(started for this", log)
    assert re.search(r"nodes\s+\S+ 127\.0\.0\.1: coordinator, prefill-0, decode-0", log)


def test_who_serves_does_not_stand_behind_all_else(server: RayServer) -> None:
    """Ray gives what it starts the niceness 15: a busy machine would leave it next to nothing."""
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in server.pids().values()} == {ours}


def test_nothing_listens_beyond_loopback(server: RayServer) -> None:
    pids = {process.pid for process in server.processes()}
    listing = subprocess.run(["ss", "-Hltnp"], check=True, capture_output=True, text=True).stdout
    ours = [
        line.split()[3]
        for line in listing.splitlines()
        if pids & {int(pid) for pid in re.findall(r"pid=(\d+)", line)}
    ]
    assert len(ours) > 3
    assert [a for a in ours if not re.match(r"127\.|\[::1\]|\[::ffff:127\.", a)] == []


def test_ray_asks_for_its_token(server: RayServer) -> None:
    address = re.search(r"at (127\.0\.0\.1:\d+) \(", server.log())
    assert address is not None
    ray = Path(sys.executable).parent / "ray"
    plain = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    done = subprocess.run(
        [str(ray), "status", "--address", address[1]],
        env={**plain, "RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "uthentic" in done.stdout + done.stderr


def test_killed_engine_is_started_again_by_its_keeper(server: RayServer) -> None:
    with Load(server) as load:
        before = server.pids()
        os.kill(before["decode-0"], signal.SIGKILL)
        until(
            lambda: server.pids().get("decode-0") not in (before["decode-0"], None), "the restart"
        )
        until(lambda: server.ready(*BOTH), "both being ready")
        load.go_on()
    load.check()
    assert server.pids()["prefill-0"] == before["prefill-0"]


@pytest.mark.parametrize("name", [BOTH[0], deep(BOTH[1])])
def test_a_worker_that_is_told_to_end_drains_and_comes_back(server: RayServer, name: str) -> None:
    """SIGTERM to the engine itself, whoever sent it: nothing is replayed, and its seat is filled again."""
    before, replays = server.pids(), server.cluster()["replays"]
    with Load(server) as load:
        load.go_on(8)
        os.kill(before[name], signal.SIGTERM)
        until(lambda: server.pids().get(name) not in (before[name], None), "its new start")
        until(lambda: server.ready(*BOTH), "both being ready")
        load.go_on()
    load.check()
    other = next(each for each in BOTH if each != name)
    assert server.pids()[other] == before[other]
    assert server.cluster()["replays"] == replays
    assert re.search(rf"{name} .*ended as it was told to; starting it again", server.log())


@pytest.mark.deep
def test_killed_seat_is_started_again_and_finds_its_process(server: RayServer) -> None:
    before, seats = server.pids(), server.seats()
    assert len(seats) == 3
    with Load(server) as load:
        for seat in seats:
            seat.kill()
        assert gone(seats) == []
        until(lambda: len(server.seats()) == 3, "the seats coming back")
        server.say("ran on")
        load.go_on()
    load.check()
    assert server.pids() == before


def test_killed_coordinator_comes_back_at_its_address(server: RayServer) -> None:
    before = server.pids()
    server.one("coordinator_main").kill()
    until(lambda: not server.is_healthy(), "the end of the coordinator")
    until(server.is_healthy, "the coordinator coming back")
    until(lambda: server.ready(*BOTH), "the workers registering again")
    assert server.pids() == before
    with Load(server) as load:
        load.go_on()
    load.check()


@pytest.mark.deep
def test_lost_ray_costs_no_request_and_comes_back(server: RayServer) -> None:
    before = server.pids()
    with Load(server) as load:
        server.one("gcs_server").kill()
        server.say("Ray is lost")
        until(lambda: scale(server, decode=2)[0] == 503, "the coordinator knowing")
        assert "Ray is away" in scale(server, decode=2)[1]
        load.go_on()
        server.say("Ray is back")
        until(lambda: len(server.seats()) == 3, "the seats coming back")
        load.go_on()
        until(lambda: scale(server, decode=2)[0] < 300, "scaling again")
        until(lambda: server.ready(*BOTH, "decode-1"), "one more")
        load.go_on()
    load.check()
    after = server.pids()
    assert {name: after[name] for name in BOTH} == before


@pytest.mark.deep
def test_a_machine_that_is_shut_down_is_left(server: RayServer) -> None:
    """SIGTERM to a keeper: what a machine says to everybody before it goes."""
    before = server.pids()
    with Load(server) as load:
        server.one("launch.ray.keeper decode-0").terminate()
        server.say("the machine of decode-0 will be taken away")
        until(lambda: "decode-0" not in server.pids(), "decode-0 leaving")
        until(lambda: len(server.pids()) == len(before), "another in its place")
        load.go_on()
    load.check()


def scale(server: RayServer, **wanted: int) -> tuple[int, str]:
    reply = server.client.post("/cluster/scale", json=wanted)
    return reply.status_code, reply.text


@pytest.mark.deep
def test_killed_owner_leaves_nothing_for_long(server: RayServer) -> None:
    """The last one over this server."""
    processes, directory = server.processes(), server.directory()
    assert len(processes) > 10
    assert directory.is_dir()
    server.process.kill()
    server.process.wait()
    assert gone(processes) == []
    until(lambda: not directory.exists(), "the end of the directory")


@pytest.mark.deep
def test_interrupt_leaves_nothing() -> None:
    with RayServer("--ray-address", "local", "--pd", "1p1d") as server:
        processes, directory = server.processes(), server.directory()
        server.interrupt()
        assert server.process.returncode == 0
        assert gone(processes) == []
        assert not directory.exists()

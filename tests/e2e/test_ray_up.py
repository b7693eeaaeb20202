"""`ray up` end to end: docs/cluster.md typed line by line on hosts of their own, over sshd, with nodes that go while a load runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.cluster_guide import blocks
from tests.e2e.hosts import Host, why_not
from tests.e2e.ray_hosts import HEAD, OPERATOR, ROOT, WORKERS, RayHosts, adapt, edit_cluster_file

pytest.importorskip("ray", reason="needs the extra baton-serve[ray]")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.xdist_group("ray"),
    pytest.mark.deep,
    pytest.mark.skipif(why_not() is not None, reason=f"no hosts of their own: {why_not()}"),
]
GUIDE = blocks()
UP_S = 240.0
URL = "http://127.0.0.1:8000"
WITH_A_SECRET = ("sshd", "gcs_server", "raylet", "ray::DashboardA")
"""Programs that may be open beyond loopback, at whatever port the kernel gives them."""


class Cluster:
    """The hosts, and a keyboard at the operator's machine."""

    def __init__(self, hosts: dict[str, Host]) -> None:
        self.hosts = hosts
        self.head = hosts[HEAD]

    def follow(self, block: str, timeout_s: float = 120.0) -> str:
        """The lines of a block of the guide; AssertionError when one fails."""
        lines = adapt(GUIDE[block], self.hosts)
        return self.hosts[OPERATOR].run(f"set -e\n{lines}", timeout_s).stdout

    def cluster_view(self) -> dict[str, Any]:
        """GET /cluster, asked on the head."""
        done = self.head.run(f"curl -s --max-time 5 {URL}/cluster", check=False)
        try:
            view: dict[str, Any] = json.loads(done.stdout)
        except json.JSONDecodeError:
            return {"workers": []}
        return view

    def ready(self) -> dict[str, int]:
        """Workers that take requests, by role."""
        found = {"prefill": 0, "decode": 0}
        for worker in self.cluster_view()["workers"]:
            if worker["state"] == "ready":
                found[worker["role"]] += 1
        return found

    def running(self, role: str) -> list[int]:
        """Sequences that run on each worker of the role."""
        workers = self.cluster_view()["workers"]
        return [w["requests"]["running"] for w in workers if w["role"] == role] or [0]

    def evidence(self) -> str:
        """What to read after a failure."""
        logs = "cd /tmp/ray/session_latest/logs; tail -n 25 monitor.log monitor.out job-driver-*"
        return self.head.run(f"{logs}; ray status", check=False).stdout


def until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    waiter = threading.Event()
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {seconds:g} s: {what}"
        waiter.wait(0.5)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with RayHosts(tmp_path_factory.mktemp("hosts")) as hosts:
        made = Cluster(hosts)
        made.follow("secret")
        made.follow("copy")
        edit_cluster_file(hosts)
        made.follow("up", UP_S)
        yield made


@pytest.fixture(autouse=True)
def show_evidence(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[None]:
    failed_before = request.session.testsfailed
    yield
    if request.session.testsfailed > failed_before:
        print(cluster.evidence())


def is_up(host: Host) -> bool:
    """Whether the host's raylet runs; `ray status` would ask more, and costs seconds of a core."""
    return host.run("pgrep -x raylet", check=False).returncode == 0


def slots(status: str) -> dict[str, float]:
    """Slots that `ray status` offers in all."""
    return {
        kind: float(n) for n, kind in re.findall(r"/([\d.]+) (prefill_slot|decode_slot)", status)
    }


def test_every_host_joins_with_its_slots(cluster: Cluster) -> None:
    wanted = {"prefill_slot": 2.0, "decode_slot": 2.0}
    for name in WORKERS:
        until(lambda host=cluster.hosts[name]: is_up(host), f"Ray on {name}", UP_S)  # type: ignore[misc]
    until(lambda: slots(cluster.follow("nodes")) == wanted, "all slots", 60)
    labels = cluster.head.run("ray list nodes --detail --format=json 2>/dev/null").stdout
    roles = {node["node_ip"]: node["labels"].get("baton.role") for node in json.loads(labels)}
    assert roles == {cluster.head.address: None} | {
        cluster.hosts[name].address: role
        for name, role in zip(WORKERS, ("prefill", "decode", "any"), strict=True)
    }


def test_the_secret_is_on_every_host_and_private(cluster: Cluster) -> None:
    found = {
        host.run("stat -c '%a %U' ~/.ray ~/.ray/auth_token; sha256sum < ~/.ray/auth_token").stdout
        for name, host in cluster.hosts.items()
        if name != OPERATOR
    }
    assert len(found) == 1
    assert found.pop().startswith("700 root\n600 root\n")


@pytest.mark.parametrize("token", ["RAY_AUTH_TOKEN=0123456789abcdef", "RAY_AUTH_MODE=disabled"])
def test_ray_answers_nobody_without_the_secret(cluster: Cluster, token: str) -> None:
    stranger = cluster.hosts[OPERATOR]
    asked = f"{token} timeout 40 ray status --address {cluster.head.address}:6379"
    done = stranger.run(asked, check=False)
    assert done.returncode != 0
    assert "slot" not in done.stdout


def test_only_ports_with_a_secret_are_open_beyond_loopback(cluster: Cluster) -> None:
    """Ray opens GCS, raylet and agents on every address; dashboard and metrics must not be."""
    for name in (HEAD, *WORKERS):
        table = cluster.hosts[name].run("ss -Hltnp").stdout.splitlines()
        rows = [(line.split()[3], re.findall(r'\(\("([^"]+)"', line)[0]) for line in table]
        others = [row for row in rows if row[1] not in WITH_A_SECRET]
        wide = [row for row in others if row[0].startswith(("0.0.0.0", "*", "[::]"))]
        metrics = [row for row in others if row[0].endswith((":44217", ":44227"))]
        assert wide + metrics == [], rows
    assert "127.0.0.1:8265" in cluster.head.run("ss -Hltn").stdout


@pytest.fixture(scope="module")
def served(cluster: Cluster) -> Cluster:
    cluster.follow("serve")
    until(lambda: cluster.ready() == {"prefill": 1, "decode": 1}, "one worker of each role", 120)
    return cluster


def test_a_submitted_job_serves_and_answers(served: Cluster) -> None:
    until(lambda: "worker decode-0 is ready" in served.follow("log"), "the job's log", 60)
    assert "Tokyo" in served.follow("chat")
    shown = served.follow("status")
    assert "prefill" in shown
    assert "decode" in shown


def test_workers_sit_on_nodes_of_their_role(served: Cluster) -> None:
    engines = {
        name: [
            line
            for line in served.hosts[name].processes()
            if "deploy.processes.worker_main" in line
        ]
        for name in (HEAD, *WORKERS)
    }
    assert engines[HEAD] == []
    assert sum(map(len, engines.values())) == 2, engines


def test_kv_blocks_cross_the_network(served: Cluster) -> None:
    """The workers' hosts share no memory, no file and no socket: nothing else can carry a block."""
    body = {"model": "smollm2-135m", "prompt": "one two three " * 60, "max_tokens": 4}
    asked = json.dumps({**body, "return_timings": True})
    post = f"curl -s {URL}/v1/completions -H 'Content-Type: application/json' -d '{asked}'"
    told = json.loads(served.head.run(post).stdout)["baton"]
    assert (told["prefill_worker"], told["decode_worker"]) == ("prefill-0", "decode-0")
    assert told["transfer_bytes"] > 0


def loaded(cluster: Cluster, during: Callable[[], None]) -> dict[str, Any]:
    """Do something while exact streams run; the load's totals."""
    inside = ["nsenter", "-t", str(cluster.head.pid), "-n"]
    command = [*inside, sys.executable, "-m", "tests.e2e.cluster_load", URL]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as load:
        assert load.stdin is not None
        assert load.stdout is not None
        try:
            assert load.stdout.readline() == "ready\n"
            during()
            load.stdin.close()
            totals: dict[str, Any] = json.loads(load.stdout.readline())
        finally:
            load.kill()
    print(totals)
    return totals


def assert_none_lost(totals: dict[str, Any]) -> None:
    assert totals["wrong"] == []
    assert totals["failed"] == []
    assert totals["complete"] > 0


def test_scaling_loses_no_request(served: Cluster) -> None:
    def scale() -> None:
        served.follow("scale", 180)
        until(lambda: served.ready() == {"prefill": 2, "decode": 2}, "two of each role", 60)

    assert_none_lost(loaded(served, scale))


def test_a_lost_node_loses_no_request(served: Cluster) -> None:
    """The power of the host that has a worker of each role fails, in the middle of answers."""
    before = served.cluster_view()["replays"]

    def lose() -> None:
        until(lambda: all(served.running("decode")), "every decode worker writes answers", 30)
        served.hosts["spare-1"].power_off()
        until(lambda: served.ready() == {"prefill": 1, "decode": 1}, "the loss is noticed", 90)

    assert_none_lost(loaded(served, lose))
    assert served.cluster_view()["replays"] > before
    assert "Tokyo" in served.follow("chat")


def test_down_leaves_nothing_behind(served: Cluster) -> None:
    lines = [line for line in GUIDE["stop"] if line]
    gone = served.hosts["spare-1"].address
    text = adapt(lines, served.hosts).replace(f" {gone}", "")
    served.hosts[OPERATOR].run(f"set -e\n{text}", 180)
    for name in (HEAD, "prefill-1", "decode-1"):
        host = served.hosts[name]
        until(lambda host=host: left(host) == [], f"{name} is empty: {left(host)}", 60)  # type: ignore[misc]
        assert host.run("ls /dev/shm").stdout.split() == []


def left(host: Host) -> list[str]:
    """Processes that are no sshd."""
    return [line for line in host.processes() if "sshd" not in line and "bash -lc" not in line]

"""`ray up` end to end: docs/cluster.md typed line by line on hosts of their own, over sshd, with nodes that go while a load runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster_guide import blocks
from tests.e2e.hosts import Host, why_not
from tests.e2e.ray_hosts import HEAD, OPERATOR, ROOT, WORKERS, RayHosts, adapt, edit_cluster_file

pytest.importorskip("ray", reason="needs the extra baton-serve[ray]")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=f"no hosts of their own: {why_not()}"),
]
GUIDE = blocks()
UP_S = 240.0
URL = "http://127.0.0.1:8000"


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


def slots(status: str) -> dict[str, float]:
    """Slots that `ray status` offers in all."""
    return {kind: float(n) for n, kind in re.findall(r"/([\d.]+) (prefill_slot|decode_slot)", status)}


def test_every_host_joins_with_its_slots(cluster: Cluster) -> None:
    wanted = {"prefill_slot": 2.0, "decode_slot": 2.0}
    until(lambda: slots(cluster.follow("nodes")) == wanted, "all slots", UP_S)
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
        wide = {program for address, program in rows if address.startswith(("0.0.0.0", "*", "[::]"))}
        assert wide <= {"sshd", "gcs_server", "raylet", "ray::DashboardA"}, rows
        assert not [address for address, _ in rows if address.endswith((":44217", ":44227"))]
    assert "127.0.0.1:8265" in cluster.head.run("ss -Hltn").stdout

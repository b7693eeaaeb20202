"""Stores over a Ray of several nodes: where they sit, a second one, a machine that dies with one, and nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.ray_rig import Load, RayServer, gone
from tests.e2e.server import BATON
from tests.e2e.test_ray_cluster import nodes, pytestmark, scale, serve
from tests.e2e.test_two_stores import stores
from tests.patience import until

__all__ = ["nodes", "pytestmark"]


def keeping(server: RayServer) -> dict[str, dict[str, Any]]:
    """Stores that have kept something."""
    return {name: w for name, w in stores(server).items() if w["store"]["kept_blocks"]}


@pytest.mark.deep
def test_a_machine_that_dies_with_its_store_costs_no_token_and_another_takes_its_place(
    nodes: Any, tmp_path: Path
) -> None:
    nodes.add(prefill_slot=1, decode_slot=1)
    first = nodes.add(store_slot=1)
    sizes = f"dram=24MiB,disk=64MiB,path={tmp_path}"
    with serve(nodes, "--pd", "1p1d", "--kv-store", sizes) as server:
        until(lambda: "store-0" in stores(server), "its store")
        with Load(server) as load:
            until(lambda: "store-0" in keeping(server), "it keeping something")
            scale(server, store=2)
            server.say("store-1 waits for a node with store_slot 1")
            nodes.add(store_slot=1)
            until(lambda: "store-1" in stores(server), "the second store")
            load.go_on()
            dies = server.pids()["store-0"]
            nodes.kill(first, "raylet")
            os.kill(dies, signal.SIGKILL)
            server.say("store-0 lost its place")
            load.go_on()
            nodes.add(store_slot=1)
            until(
                lambda: stores(server).get("store-0", {"pid": dies})["pid"] != dies,
                "a store elsewhere",
            )
            load.go_on()
        load.check()
        until(lambda: server.audit()["balanced"], "every account adding up")
        processes = server.processes()
        server.interrupt()
        assert gone(processes) == []
    clear = [str(BATON), "store", "clear", "--path", str(tmp_path)]
    subprocess.run(clear, check=True, capture_output=True)
    assert list(tmp_path.iterdir()) == []

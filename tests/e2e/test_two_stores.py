"""A second store is added while a crowd is served, the first is killed, and all of it is taken away: exact tokens, balanced books,
and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.crowd import Crowd
from tests.e2e.server import BATON, MOCK, Server
from tests.e2e.test_store import SHAPE, workers
from tests.patience import until

pytestmark = [pytest.mark.e2e, pytest.mark.deep]


def stores(server: Server) -> dict[str, dict[str, Any]]:
    """Those that are ready and have said what they keep."""
    ready = {name: w for name, w in workers(server).items() if w["state"] == "ready"}
    return {name: worker for name, worker in ready.items() if "store" in worker}


def test_one_of_two_stores_dies_under_load_and_nothing_is_lost_or_left(tmp_path: Path) -> None:
    sizes = f"dram=24MiB,disk=64MiB,path={tmp_path}"
    with Server(*SHAPE, "--kv-cache-memory", "24MiB", "--kv-store", sizes, program=MOCK) as server:
        with Crowd(server.url, 4) as crowd:
            server.client.post("/cluster/scale", json={"store": 2})
            until(lambda: len(stores(server)) == 2, "a second store")
            until(
                lambda: all(w["store"]["kept_blocks"] for w in stores(server).values()),
                "both stores keeping something",
            )
            dead = stores(server)["store-0"]["pid"]
            os.kill(dead, signal.SIGKILL)
            crowd.await_more(8)
            until(
                lambda: stores(server).get("store-0", {"pid": dead})["pid"] != dead,
                "the store being back",
            )
            crowd.await_more(8)
        assert crowd.failures == []
        until(lambda: server.cluster()["requests"]["live"] == 0, "the load being over")
        until(lambda: server.audit()["balanced"], "every account adding up")
    assert {folder.name for folder in tmp_path.iterdir()} == {"store-0", "store-1"}
    clear = [str(BATON), "store", "clear", "--path", str(tmp_path)]
    subprocess.run(clear, check=True, capture_output=True)
    assert list(tmp_path.iterdir()) == []

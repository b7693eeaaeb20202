"""A Ray whose autoscaler is awake: it starts a node (a raylet of its own) when somebody asks for resources.

baton ─ request_resources ─► head's autoscaler ─► fake_multinode provider ─► raylet with a slot
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.server import free_port
from tests.patience import PATIENCE_S, until

RAY = Path(sys.executable).parent / "ray"
HEAD_TYPE = "ray.head.default"
FAKE_HEAD_NODE_ID = "f" * 51 + "0" * 5
"""What the provider calls the head."""
IDLE_MINUTES = 0.15


def _node_type(resources: dict[str, float], most: int) -> dict[str, Any]:
    return {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": most}


class AutoscaledRay:
    """`with AutoscaledRay(prefill=2, decode=1) as ray:` a head without slots, and at most so many nodes of each type."""

    def __init__(self, **most: int) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="bt-as-")
        place = Path(self._directory.name)
        token = place / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        config = place / "autoscaling.json"
        self.address = f"127.0.0.1:{free_port()}"
        config.write_text(json.dumps(self._config(most)))
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_metrics_collection": "0",
            "RAY_worker_niceness": "0",
            "RAY_TMPDIR": str(place),
        }
        port = self.address.rpartition(":")[2]
        self._log = (place / "head.log").open("w+")
        self.process = subprocess.Popen(
            [
                *(str(RAY), "start", "--head", "--block", f"--port={port}", "--num-cpus=0"),
                *("--node-ip-address=127.0.0.1", f"--autoscaling-config={config}"),
                *("--include-dashboard=false", "--object-store-memory=80000000"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={
                **os.environ,
                **self.environment,
                "RAY_FAKE_CLUSTER": "1",
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            },
        )
        until(lambda: "--block" in self.log() or self.process.poll() is not None, "the head")
        assert self.process.poll() is None, self.log()

    def _config(self, most: dict[str, int]) -> dict[str, Any]:
        types = {
            f"{role}-node": _node_type({f"{role}_slot": 1, "CPU": 1}, count)
            for role, count in most.items()
        }
        types[HEAD_TYPE] = {"resources": {}, "node_config": {}, "max_workers": 0}
        return {
            "cluster_name": "baton-test",
            "max_workers": sum(most.values()),
            "upscaling_speed": 10.0,
            "idle_timeout_minutes": IDLE_MINUTES,
            "provider": {
                "type": "fake_multinode",
                "gcs_address": self.address,
                "disable_node_updaters": True,
                "use_node_id_as_ip": True,
            },
            "available_node_types": types,
            "head_node_type": HEAD_TYPE,
            "auth": {},
            "docker": {},
            "cluster_synced_files": [],
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            "rsync_exclude": [],
            "rsync_filter": [],
            "initialization_commands": [],
            "setup_commands": [],
            "head_setup_commands": [],
            "worker_setup_commands": [],
            "head_start_ray_commands": [],
            "worker_start_ray_commands": [],
        }

    def log(self) -> str:
        """What `ray start` says."""
        self._log.seek(0)
        return self._log.read()

    def nodes(self) -> int:
        """Raylets besides the head's."""
        found = [p for p in self._processes() if "raylet" in Path(p.info["exe"] or "").name]
        return len(found) - 1

    def _processes(self) -> list[psutil.Process]:
        """All processes of this Ray: its directory is in their command lines."""
        return [
            process
            for process in psutil.process_iter(["cmdline", "exe"])
            if any(self._directory.name in word for word in process.info["cmdline"] or [])
        ]

    def __enter__(self) -> AutoscaledRay:
        return self

    def __exit__(self, *unused: object) -> None:
        mine = psutil.Process(self.process.pid).children(recursive=True) + self._processes()
        self.process.terminate()
        for process in mine:
            if process.is_running():
                process.kill()
        self.process.wait(PATIENCE_S)
        psutil.wait_procs(mine, PATIENCE_S)
        self._log.close()
        self._directory.cleanup()

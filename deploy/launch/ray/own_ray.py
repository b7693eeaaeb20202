"""A Ray of our own, for one machine: `ray start` with everything on 127.0.0.1 and a secret. Owns its flags and environment.

usage: python -P -m deploy.launch.ray.own_ray PARENT -- RAY ARGUMENTS…      becomes `ray`, and ends with PARENT
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.launch.ray.node_directory import write_private
from deploy.processes.child import follow_parent
from protocol.errors import ConfigError
from protocol.randomness import random_hex

OBJECT_STORE_BYTES = 80_000_000
"""About the least Ray takes; Baton puts nothing into it."""
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class OwnRay:
    """What starts it, and what whoever joins it needs to know."""

    command: tuple[str, ...]
    environment: dict[str, str]
    address: str


def plan_own_ray(directory: Path, num_cpus: int) -> OwnRay:
    """A head node whose files are in `directory`, on ports that are free now. ConfigError without `ray`."""
    token = directory / "ray_token"
    write_private(token, random_hex(32).encode())
    port, client_port, agent_port = free_ports(3)
    command = (
        *(ray_program(), "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address", LOOPBACK, "--port", str(port)),
        *("--ray-client-server-port", str(client_port)),
        *("--dashboard-agent-listen-port", str(agent_port)),
        *("--include-dashboard", "false", "--include-log-monitor", "false"),
        *("--num-cpus", str(num_cpus), "--object-store-memory", str(OBJECT_STORE_BYTES)),
        *("--temp-dir", str(directory / "ray")),
    )
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_worker_niceness": "0",  # else 15: all else on the machine goes before who serves
        # Ray replaces 127.0.0.1 by an address that other machines reach, and listens on all of them, unless it
        # takes the machine for one that cannot have others: that is what this variable says.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    return OwnRay(command, environment, f"{LOOPBACK}:{port}")


def ray_program() -> str:
    """The `ray` beside this Python, or on the path."""
    beside = Path(sys.executable).parent / "ray"
    found = str(beside) if beside.is_file() else shutil.which("ray")
    if found is None:
        raise ConfigError(MISSING)
    return found


MISSING = "--launcher ray: Ray is not installed; run pip install 'baton-serve[ray]', or use --launcher local"


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


if __name__ == "__main__":
    follow_parent(int(sys.argv[1]), signal.SIGTERM)  # on which it ends what it has started
    os.execv(sys.argv[3], sys.argv[3:])

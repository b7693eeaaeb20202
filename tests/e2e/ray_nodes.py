"""A Ray of several nodes on one machine, each with a raylet of its own, all on 127.0.0.1.

usage: python -P -m tests.e2e.ray_nodes      commands on stdin, a line each; an answer of JSON a line

    add {"prefill_slot": 1}     → {"node_id": …, "pids": {"raylet": …}, "address": …}; the first is the head

"CPU" and "memory" (bytes) are what the node is told to have of them.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ray.cluster_utils import Cluster

from deploy.processes.child import follow_parent


def add(cluster: Cluster, resources: dict[str, float]) -> dict[str, Any]:
    is_head = cluster.head_node is None
    options: dict[str, Any] = {"include_dashboard": False, "no_monitor": True} if is_head else {}
    node = cluster.add_node(
        node_ip_address="127.0.0.1",
        num_cpus=resources.pop("CPU", 0),
        memory=int(resources.pop("memory")) if "memory" in resources else None,
        resources=resources,
        include_log_monitor=False,
        object_store_memory=80_000_000,
        **options,
    )
    pids = {name: found[0].process.pid for name, found in node.all_processes.items()}
    return {"node_id": node.node_id, "pids": pids, "address": cluster.address}


def obey(cluster: Cluster, line: str) -> dict[str, Any]:
    verb, _, rest = line.strip().partition(" ")
    if verb == "add":
        return add(cluster, json.loads(rest))
    raise ValueError(verb)


def main() -> None:
    follow_parent(0)
    cluster = Cluster()
    for line in sys.stdin:
        print(json.dumps(obey(cluster, line)), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()

"""A Ray of several nodes on one machine, each with a raylet of its own, all on 127.0.0.1.

usage: python -P -m tests.e2e.ray_nodes      commands on stdin, a line each; an answer of JSON a line

    add {"prefill_slot": 1}     → {"node_id": …, "raylet": pid, "address": …}; the first is the head
    remove NODE_ID              → {}       the node leaves as a machine that is switched off
    restart_gcs                 → {}       the head's service ends and another begins
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ray.cluster_utils import Cluster

from deploy.child import follow_parent


def add(cluster: Cluster, nodes: dict[str, Any], resources: dict[str, float]) -> dict[str, Any]:
    is_head = cluster.head_node is None
    options: dict[str, Any] = {"include_dashboard": False, "no_monitor": True} if is_head else {}
    node = cluster.add_node(
        node_ip_address="127.0.0.1",
        num_cpus=resources.pop("CPU", 0),
        resources=resources,
        include_log_monitor=False,
        object_store_memory=80_000_000,
        **options,
    )
    nodes[node.node_id] = node
    raylet = node.all_processes["raylet"][0].process.pid
    return {"node_id": node.node_id, "raylet": raylet, "address": cluster.address}


def obey(cluster: Cluster, nodes: dict[str, Any], line: str) -> dict[str, Any]:
    verb, _, rest = line.strip().partition(" ")
    if verb == "add":
        return add(cluster, nodes, json.loads(rest))
    if verb == "remove":
        cluster.remove_node(nodes.pop(rest), allow_graceful=False)
        return {}
    raise ValueError(verb)


def main() -> None:
    follow_parent(0)
    cluster = Cluster()
    nodes: dict[str, Any] = {}
    for line in sys.stdin:
        print(json.dumps(obey(cluster, nodes, line)), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()

"""A cluster of the real coordinator and stamping workers. Owns its process from start to end.

usage: python -m benchmarks.coordinator.stamped_cluster SPEC    SPEC is JSON, a ClusterSpec; says READY on standard output
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from deploy.config.serve_config import resolve
from deploy.config.topology import cache_directory
from deploy.host.model_source import prepare
from deploy.host.run_directory import run_directory
from deploy.launch.local.launcher import Launcher, Modules
from deploy.launch.plan import Host, Plan, make_plan
from protocol.clock import SystemClock

BLOCKS = 65_536


class ClusterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What runs: pools as `--pd`, the port, the longest batch, the length of a step, and more options of `baton serve`."""

    pd: str
    port: int
    max_num_seqs: int
    step_ms: float
    options: dict[str, str] = {}


def say(name: str, line: str) -> None:
    """What children print, beside the figures."""
    print(f"{name} {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Until a signal."""
    spec = msgspec.json.decode(sys.argv[1], type=ClusterSpec)
    options = {
        "pd": spec.pd,
        "max-num-seqs": str(spec.max_num_seqs),
        "max-num-batched-tokens": "2048",
        "cpu-affinity": "none",
        "log-level": "error",
    } | spec.options
    config = resolve(options, {}).config
    model = prepare("smollm2-135m", (), "float32", cache_directory(), lambda *_: None)
    with run_directory() as directory:
        made = make_plan(config, model, Host.here(), directory, spec.port)
        workers = (
            msgspec.structs.replace(w, backend=f"stamping:{spec.step_ms}", num_blocks=BLOCKS)
            for w in made.workers
        )
        plan = Plan(made.coordinator, tuple(workers))
        modules = Modules(worker="benchmarks.coordinator.stamping_worker")
        launcher = Launcher(plan, directory, SystemClock(), say, modules=modules)
        asyncio.run(launcher.run(lambda _: print("READY", flush=True)))


if __name__ == "__main__":
    main()

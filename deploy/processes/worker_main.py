"""A worker process: pins itself, loads the engine, runs the loop.

usage: python -m deploy.processes.worker_main SPEC_FILE [--parent PID] [--standby-fd N]

With --standby-fd the spec is one of workers like it, and which worker to be comes over that pipe (deploy/processes/standby.py).
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import msgspec

from deploy.host.memory import available_bytes
from deploy.processes.child import (
    end_by_interrupt,
    follow_parent,
    harden,
    log_as,
    log_to_stderr,
    unhurried,
)
from deploy.processes.garbage import begin_collection, hold_collection
from deploy.processes.standby import keep_to, stand_by
from engine.context import WorkerContext
from protocol.addresses import check_can_advertise, tcp_endpoint
from protocol.channels import require_keys
from protocol.clock import SystemClock
from protocol.errors import BatonError
from protocol.ids import RandomIds
from protocol.specs import WorkerSpec

log = logging.getLogger(__name__)
STANDBY = "standby"


def run_worker(spec: WorkerSpec) -> None:
    """Serve until told to stop."""
    check_network(spec)
    if spec.cores:
        keep_to(spec.cores)
    if not spec.role.computes:  # it may start again and again, and nobody needs it
        unhurried(import_worker)
    # Torch starts threads when it is imported: it must be after the pinning.
    from worker.engine_start import start_engine
    from worker.wiring import build_worker

    clock, ids = SystemClock(), RandomIds()
    started_s = clock.now_s()
    engine = start_engine(spec)
    context = WorkerContext(
        worker_id=spec.worker_id,
        incarnation=ids.new_incarnation(),
        fingerprint_hash=engine.fingerprint.hash_bytes(),
        clock=clock,
        ids=ids,
        lease_duration_s=spec.lease_duration_s,
        vocab_size=spec.model.config.vocab_size,
        adapters=engine.adapters,
    )
    worker = build_worker(spec, engine, context, available_bytes)
    log.info("engine ready after %.2f s: %s", clock.now_s() - started_s, engine.runner.backend)
    begin_collection()
    worker.run()


def import_worker() -> None:
    """Most of what a start takes of the processor."""
    import worker.engine_start
    import worker.wiring  # noqa: F401


def check_network(spec: WorkerSpec) -> None:
    """Before anything is loaded: ConfigError for addresses that may not be used as they are."""
    check_can_advertise(spec.peer_host, "peer_host")
    require_keys(tcp_endpoint(spec.peer_host), spec.keys, "peer_host")
    require_keys(spec.control, spec.keys, "control")


def main() -> int:
    """Exit status: 0 after a stop, 2 when the spec cannot work; a crash is a traceback and 1."""
    parser = argparse.ArgumentParser()
    parser.add_argument("spec", type=Path)
    parser.add_argument("--parent", type=int, default=0)
    parser.add_argument("--standby-fd", type=int)
    arguments = parser.parse_args()
    return serve_file(arguments.spec, arguments.parent, arguments.standby_fd)


def serve_file(path: Path, parent: int, standby_fd: int | None = None) -> int:
    """The worker whose spec lies there, from its first act to its exit status."""
    hold_collection()
    follow_parent(parent)
    end_by_interrupt()
    harden()
    spec = msgspec.json.decode(path.read_bytes(), type=WorkerSpec)
    log_to_stderr(spec.worker_id if standby_fd is None else STANDBY, spec.log_level)
    try:
        if standby_fd is None:
            run_worker(spec)
        elif (chosen := stand_by(spec, standby_fd)) is not None:
            log_as(chosen.worker_id)
            run_worker(chosen)
    except BatonError as error:
        log.error("%s", error)  # noqa: TRY400 - a message for people, not a traceback
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A worker whose engine computes nothing: its tokens tell when they were made, at a steady pace. For `baton bench coordinator`.

Everything around the engine is the production worker: schedulers, leases, pulls, control messages.

usage: python -m benchmarks.coordinator.stamping_worker SPEC_FILE --parent PID    spec.backend is "stamping:MS", the step's length
"""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from benchmarks.coordinator.stamped_tokens import Stamps
from deploy.host.memory import available_bytes
from deploy.processes.child import follow_parent, harden, log_to_stderr
from engine.attesting import SLOT_BYTES
from engine.checkpoints.prepared import fingerprint
from engine.context import WorkerContext
from engine.kv.pool_memory import KvMemory
from protocol.clock import SystemClock
from protocol.ids import RandomIds
from protocol.sampling import SampledToken
from protocol.specs import WorkerSpec
from worker.engine_start import StartedEngine
from worker.wiring import build_worker

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from engine.kv.sequence import Scheduled
    from protocol.clock import Clock


class StampingRunner:
    """Satisfies engine.runner_api.Runner. A decode step ends no earlier than `step_s` after the last one;
    a prefill step takes no time."""

    def __init__(self, stamps: Stamps, step_s: float, clock: Clock) -> None:
        self.backend = f"stamping mock, {step_s * 1e3:g} ms a step"
        self._stamps, self._step_s, self._clock = stamps, step_s, clock
        self._next_s = 0.0
        self._pause = threading.Event()

    def execute(self, batch: SequenceOf[Scheduled]) -> list[SampledToken | None]:
        """See engine.runner_api."""
        if all(entry.num_tokens == 1 for entry in batch):
            self._keep_pace()
        token = SampledToken(token_id=self._stamps.stamp(self._clock.now_s()))
        return [token if entry.samples else None for entry in batch]

    def _keep_pace(self) -> None:
        now_s = self._clock.now_s()
        if now_s < self._next_s:
            self._pause.wait(self._next_s - now_s)
        self._next_s = max(self._next_s, now_s) + self._step_s


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("spec", type=Path)
    parser.add_argument("--parent", type=int, default=0)
    arguments = parser.parse_args()
    follow_parent(arguments.parent)
    harden()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spec = msgspec.json.decode(arguments.spec.read_bytes(), type=WorkerSpec)
    log_to_stderr(spec.worker_id, spec.log_level)
    directory, clock, ids = Path(spec.model.directory), SystemClock(), RandomIds()
    layout = fingerprint(directory, spec.block_size)
    step_s = float(spec.backend.partition(":")[2]) / 1e3
    context = WorkerContext(
        worker_id=spec.worker_id,
        incarnation=ids.new_incarnation(),
        fingerprint_hash=layout.hash_bytes(),
        clock=clock,
        ids=ids,
        lease_duration_s=spec.lease_duration_s,
    )
    runner = StampingRunner(Stamps(directory), step_s, clock)
    memory = KvMemory(spec.num_blocks, spec.block_size * SLOT_BYTES)
    build_worker(spec, StartedEngine(runner, memory, layout), context, available_bytes).run()


if __name__ == "__main__":
    main()

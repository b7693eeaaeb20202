"""A runner that counts its steps. Owns the figures of steps that a heartbeat tells, and how long each sequence was computed;
computes nothing."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from protocol.worker_load import STEP_TOKEN_BUCKETS

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from engine.kv.sequence import Scheduled
    from engine.pace import Pace
    from engine.runner_api import Runner
    from protocol.clock import Clock
    from protocol.sampling import SampledToken


class MeteredRunner:
    """Written by the engine loop alone; the heartbeat thread reads, each field by itself. `pace` learns from the steps."""

    def __init__(self, runner: Runner, clock: Clock, pace: Pace) -> None:
        self._runner = runner
        self._clock = clock
        self._pace = pace
        self.backend = runner.backend
        self.steps = 0
        self.step_s = 0.0
        self.stepped_tokens = 0
        self.step_sizes = [0] * (len(STEP_TOKEN_BUCKETS) + 1)

    def execute(self, batch: SequenceOf[Scheduled]) -> list[SampledToken | None]:
        """See engine.runner_api."""
        started_s = self._clock.now_s()
        tokens = self._runner.execute(batch)
        size = sum(scheduled.num_tokens for scheduled in batch)
        took_s = self._clock.now_s() - started_s
        self._pace.took(batch, took_s)
        for scheduled in batch:
            scheduled.sequence.computed_for(took_s)
        self.step_s += took_s
        self.steps += 1
        self.stepped_tokens += size
        self.step_sizes[bisect_left(STEP_TOKEN_BUCKETS, size)] += 1
        return tokens

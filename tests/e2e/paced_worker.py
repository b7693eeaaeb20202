"""A worker process whose attesting mock takes `STEP_S` for every step."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import worker.engine_start
from deploy.processes.worker_main import main
from engine.attesting import AttestingRunner
from protocol.sampling import SampledToken

STEP_S = 0.04


class PacedRunner(AttestingRunner):
    """The sleep stands for the accelerator: nothing waits for it that a real step would not hold up."""

    def execute(self, batch: Sequence[Any]) -> list[SampledToken | None]:
        time.sleep(STEP_S)
        return super().execute(batch)


if __name__ == "__main__":
    vars(worker.engine_start)["AttestingRunner"] = PacedRunner
    sys.exit(main())

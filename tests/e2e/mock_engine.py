"""`baton serve` over the attesting mock engine: every process and socket is real, only the model is not.

usage: python -m tests.e2e.mock_engine serve [OPTIONS]
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import msgspec

import deploy.commands.serve
from deploy.cli import main
from deploy.launch.plan import Plan, make_plan
from worker.engine_start import MOCK_BACKEND


def mocked(*arguments: Any, **named: Any) -> Plan:
    """The plan, with the mock in every worker."""
    plan = make_plan(*arguments, **named)
    workers = (msgspec.structs.replace(worker, backend=MOCK_BACKEND) for worker in plan.workers)
    return dataclasses.replace(plan, workers=tuple(workers))


if __name__ == "__main__":
    vars(deploy.commands.serve)["make_plan"] = mocked
    sys.exit(main())

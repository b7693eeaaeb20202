"""`baton serve` over a mock whose steps take their time, as an accelerator's do: many streams live at once, and the
processor is free.

usage: python -m tests.e2e.paced_engine serve [OPTIONS]
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import Any

import msgspec

import deploy.commands.serve
from deploy.cli import main
from deploy.launch.local.launcher import Launcher, Modules
from deploy.launch.plan import Plan
from tests.e2e.mock_engine import mocked

MORE_BLOCKS = 8


def roomy(*arguments: Any) -> Plan:
    """The plan, with pools for many streams: a mock's block takes 256 bytes."""
    plan = mocked(*arguments)
    roomier = (
        msgspec.structs.replace(worker, num_blocks=worker.num_blocks * MORE_BLOCKS)
        for worker in plan.workers
    )
    return dataclasses.replace(plan, workers=tuple(roomier))


if __name__ == "__main__":
    modules = Modules(worker="tests.e2e.paced_worker")
    vars(deploy.commands.serve)["make_plan"] = roomy
    vars(deploy.commands.serve)["Launcher"] = functools.partial(Launcher, modules=modules)
    sys.exit(main())

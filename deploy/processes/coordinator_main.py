"""A coordinator process: ties itself to its launcher, reads its spec, serves.

usage: python -m deploy.processes.coordinator_main SPEC_FILE [--ready-fd N] [--parent PID]
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import msgspec

from deploy.processes.child import end_by_interrupt, follow_parent, harden, log_to_stderr
from deploy.processes.garbage import hold_collection
from protocol.errors import BatonError
from protocol.specs import CoordinatorSpec

log = logging.getLogger(__name__)


def main() -> int:
    """Exit status: 0 after a stop, 2 when the spec cannot work."""
    parser = argparse.ArgumentParser()
    parser.add_argument("spec", type=Path)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--parent", type=int, default=0)
    arguments = parser.parse_args()
    follow_parent(arguments.parent)
    end_by_interrupt()
    harden()
    spec = msgspec.json.decode(arguments.spec.read_bytes(), type=CoordinatorSpec)
    log_to_stderr("coordinator", spec.log_level)
    hold_collection()  # the application's lifespan begins it
    import uvloop

    from deploy.processes.coordinator_process import CoordinatorProcess

    try:
        process = CoordinatorProcess(spec, arguments.ready_fd)
        uvloop.run(process.serve())
    except BatonError as error:
        log.error("%s", error)  # noqa: TRY400 - a message for people, not a traceback
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

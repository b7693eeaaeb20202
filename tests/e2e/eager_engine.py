"""`baton serve` over the mock engine, whose launcher starts what died again at once: for campaigns of many deaths.

usage: python -m tests.e2e.eager_engine serve [OPTIONS]
"""

from __future__ import annotations

import sys

import deploy.commands.serve
import launching.backoff
from deploy.cli import main
from tests.e2e.mock_engine import mocked

if __name__ == "__main__":
    vars(deploy.commands.serve)["make_plan"] = mocked
    vars(launching.backoff).update(SECOND_DELAY_S=0.2, MAX_DELAY_S=0.2)
    sys.exit(main())

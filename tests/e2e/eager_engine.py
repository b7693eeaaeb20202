"""`baton serve`, whose launcher starts what died again at once: for campaigns of many deaths. Over the mock engine unless `--real`.

usage: python -m tests.e2e.eager_engine [--real] serve [OPTIONS]
"""

from __future__ import annotations

import sys

import deploy.commands.serve
import launching.backoff
from deploy.cli import main
from tests.e2e.mock_engine import mocked

if __name__ == "__main__":
    if sys.argv[1] == "--real":
        del sys.argv[1]
    else:
        vars(deploy.commands.serve)["make_plan"] = mocked
    vars(launching.backoff).update(SECOND_DELAY_S=0.2, MAX_DELAY_S=0.2)
    sys.exit(main())

"""The one name that Baton takes where it is installed. Owns where its packages are found, and nothing else.

In a wheel they lie in this folder, under the names that they have in a checkout; `baton_serve.pth` beside it lets every
Python of the environment find them, after all else. Here they are put first, so that another distribution's `engine` or
`worker` is never taken for ours. docs/adr/0016-one-name-in-site-packages.md has the reasons.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOME = HERE if (HERE / "deploy").is_dir() else HERE.parent
"""The folder of Baton's packages: this one in a wheel, the root of a checkout."""


def main() -> int:
    """The command `baton`."""
    sys.path.insert(0, str(HOME))
    from deploy.cli import main as run

    return run()

"""`python -m baton_serve` is `baton`."""

from __future__ import annotations

import sys

from baton_serve import main

if __name__ == "__main__":
    sys.exit(main())

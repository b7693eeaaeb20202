"""Options of the test run."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seeds", type=int, default=300, help="seeds of the cluster simulation (CI: 10000)"
    )
    parser.addoption("--first-seed", type=int, default=0, help="where the seeds start")

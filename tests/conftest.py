"""Options of the test run; `tests.schedule` decides what runs side by side."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch

pytest_plugins = ["tests.schedule"] if find_spec("xdist") else []

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    """Kernels run in Triton's interpreter. It must know before anything imports Triton."""
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    """Several test processes share the cores already."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seeds", type=int, default=60, help="seeds of the cluster simulation (CI: 6000)"
    )
    parser.addoption("--first-seed", type=int, default=0, help="where the seeds start")

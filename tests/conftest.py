"""Options of the test run."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    """Kernels run in Triton's interpreter. It must know before anything imports Triton."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seeds", type=int, default=300, help="seeds of the cluster simulation (CI: 10000)"
    )
    parser.addoption("--first-seed", type=int, default=0, help="where the seeds start")

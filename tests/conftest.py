"""Options of the test run; `tests.schedule` decides what runs side by side, `tests.sampling` which values are tried."""

from __future__ import annotations

import gc
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Generator

pytest_plugins = ["tests.sampling", *(["tests.schedule"] if find_spec("xdist") else [])]

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    """Kernels run in Triton's interpreter. It must know before anything imports Triton."""
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    """Several test processes share the cores already."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What ten thousand tests and their modules are made of stays: no garbage collection need walk through it, neither
    while it grows nor afterwards."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seeds", type=int, default=20, help="seeds of the cluster simulation (CI: 4500)"
    )
    parser.addoption("--first-seed", type=int, default=0, help="where the seeds start")

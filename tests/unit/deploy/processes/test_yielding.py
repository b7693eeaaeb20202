"""A process that yields: its niceness, and its slices where the kernel shows them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

PROGRAM = """
import os
from pathlib import Path
from deploy.processes.yielding import yield_cores
before = os.getpriority(os.PRIO_PROCESS, 0)
print(yield_cores(3, 1e-4), os.getpriority(os.PRIO_PROCESS, 0) - before)
print(Path("/proc/self/sched").read_text() if Path("/proc/self/sched").exists() else "")
"""


def test_it_is_nicer_and_has_short_slices() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    words, _, told = done.stdout.partition("\n")
    has_slices, nicer = words.split()
    assert nicer in ("3", "0")  # there is no niceness beyond 19
    if (found := re.search(r"se\.slice\s*:\s*(\d+)", told)) is None:
        pytest.skip("this kernel does not show slices")
    assert (has_slices, found[1]) == ("True", "100000")

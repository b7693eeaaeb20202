"""The kernels on Arm: built by a compiler for it, and run by an emulator of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from engine.cpu.kernel_library import _FLAGS

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
HERE = Path(__file__).parent
KERNELS = HERE.parents[3] / "engine/cpu/kernels"

pytestmark = pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)),
    reason="needs gcc-aarch64-linux-gnu and qemu-user",
)


@pytest.mark.deep
@pytest.mark.slow
def test_products_are_right_on_arm_and_a_row_alone_has_the_same_bits(tmp_path: Path) -> None:
    program = tmp_path / "products"
    flags = [flag for flag in _FLAGS if flag not in ("-shared", "-fPIC")]
    source = HERE / "products_elsewhere.c"
    command = [COMPILER, *flags, "-static", f"-I{KERNELS}", "-o", str(program), str(source), "-lm"]
    subprocess.run(command, check=True, timeout=300)
    told = subprocess.run(
        [EMULATOR, str(program)], capture_output=True, text=True, check=False, timeout=300
    )
    assert told.stdout == "neon 0 wrong\n", told

"""Every kernel under the address and undefined-behaviour sanitizers, on sizes that leave remainders everywhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.marks import deep
from tests.unit.engine.cpu.processors import runnable_targets

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc and its sanitizers"),
]
ROOT = Path(__file__).parents[4]
BOTH = ["float32", "bfloat16"]
CODE = """
import sys
from pathlib import Path
import engine.cpu.kernel_library as library
library._FLAGS = ("-O0", "-g", "-fopenmp", "-ffp-contract=off", "-fsanitize=address,undefined",
                  "-fno-sanitize=alignment", "-fno-sanitize-recover=all", "-shared", "-fPIC", "-w")
target, cache, num_shapes, dtypes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
import torch
import tests.unit.engine.cpu.driving as driving
import tests.unit.engine.cpu.test_adapter_kernels as adapters
import tests.unit.engine.cpu.test_cpu_kernels as kernels
import tests.unit.engine.cpu.test_lending as lending
import tests.unit.engine.cpu.test_quantized_kernels as quantized
driving.cache_directory = lambda: cache
for dtype in (getattr(torch, name) for name in dtypes):
    for spans in kernels.SPANS.values():
        for shape in (kernels.ATTENTION[1], *kernels.ATTENTION[-3:])[:num_shapes]:
            kernels.test_attention_equals_the_reference(dtype, spans, *shape, target)
    kernels.test_a_norm_equals_the_reference(dtype, 7, target)
    for outputs, inputs in kernels.SHAPES:
        kernels.test_a_product_is_right_and_a_row_of_it_alone_has_the_same_bits(
            dtype, True, outputs, inputs, target)
    kernels.test_a_gated_product_equals_the_reference_and_row_by_row_has_the_same_bits(
        dtype, True, 48, target)
    for outputs, inputs in quantized.SHAPES:
        quantized.test_a_product_of_bytes_has_the_bits_of_its_definition_for_every_number_of_rows(
            dtype, True, outputs, inputs, target)
    quantized.test_a_gated_product_of_bytes_is_gated_after_its_sums(dtype, True, 48, target)
    quantized.test_what_is_no_number_stays_in_its_row(dtype, float("nan"), 40, target)
    for threads in (1, 3):
        adapters.test_adapters_of_a_step_equal_the_reference_and_each_sequence_alone(dtype, target, threads)
lender = lending.Lender(cache, lending.kernels_for(torch.bfloat16, target))
lending.test_what_others_computed_has_the_same_bits(lambda *_: lender, "added", target, torch.bfloat16)
lender.team.close()
print("clean")
"""


def sanitizer() -> str:
    found = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


@pytest.mark.parametrize(
    ("target", "dtypes", "num_shapes"),
    [("native", ["bfloat16"], 1), *(deep(target, BOTH, 4) for target in runnable_targets())],
)
def test_kernels_are_clean(target: str, dtypes: list[str], num_shapes: int, tmp_path: Path) -> None:
    """Attention of so many shapes, for each of which a library is compiled."""
    if not Path(sanitizer()).is_absolute():
        pytest.skip("gcc came without libasan")
    environment = {
        "PATH": "/usr/bin:/bin",
        "LD_PRELOAD": sanitizer(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE, target, str(tmp_path), str(num_shapes), *dtypes],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.endswith("clean\n")
    assert list(tmp_path.rglob("decoder-*.so")), "the library was not built here"

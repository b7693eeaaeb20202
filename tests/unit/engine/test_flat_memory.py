"""What an engine keeps does not grow with the number of different prompts: no state is cached per shape."""

from __future__ import annotations

import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from deploy.config.topology import cache_directory
from engine.checkpoints.prepare import prepare
from tests.greedy import generate, load, random_prompts
from tests.unit.engine.test_model_grid import VOCAB, build, save

LENGTHS = 300
GROWTH_BYTES = 4 << 20
"""oneDNN's products keep state of each shape: measured here, more than 1 MiB a length."""


def private_bytes() -> int:
    """Memory of this process alone."""
    rollup = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return sum(
        int(size) << 10 for size in re.findall(r"^Private_\w+: +(\d+) kB", rollup, re.MULTILINE)
    )


def compute(runner: Any, lengths: list[int]) -> None:
    """A prompt of each length, one after the other."""
    for prompt in random_prompts(lengths, VOCAB):
        generate(runner, [prompt], 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_private_memory_is_flat_over_prompt_lengths(tmp_path: Path, dtype: Any) -> None:
    save(build("Llama", {}), tmp_path / "source")
    prepared = prepare(tmp_path / "source", tmp_path / "cache", dtype, lambda *_: None)
    runner = load(prepared, "auto", cache_directory() / "kernels")
    assert "not exact" not in runner.backend
    lengths = random.Random(0).sample(range(1, 512), LENGTHS)
    compute(runner, [511, 510, *lengths[:30]])
    sizes = [private_bytes()]
    for first in range(
        30, LENGTHS, 90
    ):  # what is kept of each shape shows every time, the allocator's own only once
        compute(runner, lengths[first : first + 90])
        sizes.append(private_bytes())
    assert min(after - before for before, after in pairwise(sizes)) < GROWTH_BYTES

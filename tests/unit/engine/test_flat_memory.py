"""What an engine keeps does not grow with the number of different prompts: no state is cached per shape."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from deploy.config.topology import cache_directory
from engine.checkpoints.prepare import prepare
from tests.greedy import generate, load, random_prompts
from tests.unit.engine.test_model_grid import VOCAB, build, save

LENGTHS = 300
GROWTH_BYTES = 4 << 20
"""oneDNN's products keep 4 KiB of each shape and layer: 16 MiB here, half a GiB with the embedded model."""


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
    compute(runner, [511, 510, *lengths[:20]])
    before = private_bytes()
    compute(runner, lengths[20:])
    assert private_bytes() - before < GROWTH_BYTES

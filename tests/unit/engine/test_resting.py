"""Memory of a pool and of mapped weights: what goes, what comes again, and what is refused."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path

import pytest
import torch

from deploy.config.topology import cache_directory
from engine.checkpoints.prepare import prepare
from engine.kv.pool_memory import KvMemory
from engine.resting import HostResting
from protocol.errors import WorkerLost
from protocol.sleeping import Part
from tests.greedy import generate, load, random_prompts
from tests.unit.engine.test_model_grid import VOCAB, build, save

MIB = 1 << 20


def held(memory: KvMemory) -> int:
    """As the kernel counts it."""
    return os.fstat(memory.fd).st_blocks * 512


def resident(address: int) -> int:
    """Bytes of the mapping at that address that are in this process's page table."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{address:x}-"))
    size = next(line for line in lines[start:] if line.startswith("Rss:"))
    return int(size.split()[1]) * 1024


def open_files() -> set[tuple[int, int]]:
    """Device and number of everything that this process has a descriptor of."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that listed them
            status = os.fstat(int(path.name))
            found.add((status.st_dev, status.st_ino))
    return found


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_pool_that_nobody_has_leaves_no_descriptor(is_closed: bool) -> None:
    memory = KvMemory(1, 4096)
    status = os.fstat(memory.fd)
    if is_closed:
        memory.close()
        memory.close()
    del memory
    gc.collect()
    assert (status.st_dev, status.st_ino) not in open_files()


def test_a_pool_gives_its_memory_back_and_is_zeros_when_it_comes_again() -> None:
    memory = KvMemory(8, MIB)
    view = memory.readable(3, 1)
    view[:] = b"\x07" * MIB
    resting = HostResting(memory, [], lambda: 100 * MIB)
    resting.give_back(Part.KV_CACHE)
    assert (held(memory), memory.held_bytes) == (0, 0)
    resting.take_again(Part.KV_CACHE)
    assert (held(memory), memory.held_bytes) == (8 * MIB, 8 * MIB)
    assert bytes(view) == bytes(MIB), "views and addresses stay"
    view[:4] = b"abcd"
    assert bytes(memory.block(3)[:4]) == b"abcd"


def test_a_pool_for_which_there_is_no_memory_stays_away() -> None:
    memory = KvMemory(8, MIB)
    left = 9 * MIB
    resting = HostResting(memory, [], lambda: left)
    resting.take_again(Part.KV_CACHE)
    resting.give_back(Part.KV_CACHE)
    with pytest.raises(WorkerLost, match="needs 8388608 bytes"):
        resting.take_again(Part.KV_CACHE)
    assert held(memory) == 0
    left = 11 * MIB
    resting.take_again(Part.KV_CACHE)
    assert held(memory) == 8 * MIB


def test_weights_leave_the_process_and_are_the_same_when_they_are_read_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(4 * MIB))
    mapping = torch.from_file(str(path), shared=False, size=4 * MIB, dtype=torch.uint8)
    before = mapping.clone()
    assert resident(mapping.data_ptr()) == 4 * MIB
    resting = HostResting(KvMemory(1, 4096), [mapping], lambda: MIB)
    resting.give_back(Part.WEIGHTS)
    assert resident(mapping.data_ptr()) == 0
    resting.take_again(Part.WEIGHTS)
    assert torch.equal(mapping, before)


def test_a_model_that_slept_says_the_same_to_the_bit(tmp_path: Path) -> None:
    """The C kernels read panels and embedding from the mappings, which were taken out of the process."""
    save(build("Llama", {}), tmp_path / "source")
    prepared = prepare(tmp_path / "source", tmp_path / "cache", "float32", lambda *_: None)
    runner = load(prepared, "auto", cache_directory() / "kernels")
    prompts = random_prompts([24, 7], VOCAB)
    expected = generate(runner, prompts, 6)
    assert len(runner.mappings) == 2
    resting = HostResting(runner.kv_memory, runner.mappings, lambda: 1 << 40)
    for part in Part:
        resting.give_back(part)
    assert [resident(mapping.data_ptr()) for mapping in runner.mappings] == [0, 0]
    for part in Part:
        resting.take_again(part)
    assert generate(runner, prompts, 6) == expected

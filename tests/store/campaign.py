"""Crashes and damage by the thousand: what a block log gives afterwards, and that it is never a wrong byte.

usage: python -m tests.store.campaign [--kills N] [--power-cuts N] [--damages N] [--seed S] [--folder F]

kills       a process with a log dies by SIGKILL at its n-th operation on the disk, in the middle of that when it is a write
power cuts  of a log's operations those that were synced are on the disk; of the later ones some, or some sectors
damages     files of a closed log are cut, changed, swapped, zeroed, doubled or replaced by another model's

After each: the log opens, every block that it gives has the right bytes, and what was acknowledged is there (after damage:
what lies outside of it). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from kvtransfer.store.layout import EMPTY_SLOT, SLOT_BYTES, decode_commit
from kvtransfer.store.log import BlockLog
from kvtransfer.store.records import EventKind
from tests.store.blocks import BLOCK_BYTES, OTHER, block, key, opened, put, wrong_reads
from tests.store.disks import KillingDisk, Operation, RememberingDisk, after_power_loss

NUM_BLOCKS = 96
ROOMY, TIGHT = 64 << 20, 40 * BLOCK_BYTES
"""A log that never evicts, and one that does all the time."""
NUMBERS = range(NUM_BLOCKS * 2)


@dataclass
class Tally:
    """Of one kind of fault. `acknowledged` counts blocks said to be there for good, in logs that do not evict."""

    cases: int = 0
    read: int = 0
    wrong: int = 0
    acknowledged: int = 0
    found: int = 0
    failed_to_open: int = 0

    def check(self, log: BlockLog, acknowledged: set[int]) -> None:
        """Read everything there may be."""
        there, wrong = wrong_reads(log, NUMBERS)
        self.cases += 1
        self.read += len(there)
        self.wrong += len(wrong)
        self.acknowledged += len(acknowledged)
        self.found += len(acknowledged & there)


def work(log: BlockLog, chance: random.Random, tell: Callable[[int], object]) -> None:
    """Puts in groups, reads between them, and every acknowledged number told."""
    number_of = {key(number): number for number in NUMBERS}
    numbers = list(range(NUM_BLOCKS))
    while numbers:
        size = chance.choice((1, 2, 5, 11))
        group, numbers = numbers[:size], numbers[size:]
        put(log, *group)
        wrong_reads(log, range(group[0], group[-1] + 1))
        for event in log.events() or ():
            if event.kind is EventKind.STORED:
                tell(number_of[event.record.key])


def kill(path: Path, seed: int) -> set[int]:
    """Fork a process with a log at `path`, which dies somewhere; what it had acknowledged."""
    chance = random.Random(seed)
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        disk = KillingDisk(path, chance.randrange(1, 260), chance.random())
        log = opened(path, ROOMY if seed % 2 else TIGHT, disk)
        work(log, chance, lambda number: os.write(write_fd, number.to_bytes(2, "little")))
        log.close()
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as told:
        acknowledged = told.read()
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, f"seed {seed}: it ended otherwise: {status}"
    return {
        int.from_bytes(acknowledged[at : at + 2], "little") for at in range(0, len(acknowledged), 2)
    }


def kills(count: int, seed: int) -> Tally:
    """Each log is killed up to three times before it is looked at."""
    tally = Tally()
    for case in range(seed, seed + count):
        with tempfile.TemporaryDirectory(prefix="storelog-kill-") as folder:
            path = Path(folder)
            acknowledged: set[int] = set()
            for again in range(1 + case % 3):
                acknowledged |= kill(path, (case * 3 + again) * 2 + case % 2)
            look(path, tally, acknowledged if case % 2 else set())
    return tally


def look(path: Path, tally: Tally, acknowledged: set[int]) -> None:
    """Open, read everything, write on, close."""
    log = opened(path)
    tally.check(log, acknowledged)
    put(log, *range(NUM_BLOCKS, NUM_BLOCKS + 5))
    log.close()
    log = opened(path)
    there, wrong = wrong_reads(log, NUMBERS)
    tally.wrong += len(wrong)
    if not set(range(NUM_BLOCKS, NUM_BLOCKS + 5)) <= there:
        tally.failed_to_open += 1
    log.close()


def power_cuts(count: int, seed: int) -> Tally:
    """One run of each log, cut at many points."""
    tally = Tally()
    for capacity in (ROOMY, TIGHT):
        operations, acknowledged_at = remembered(capacity, random.Random(seed))
        lives = lives_of(operations, acknowledged_at)
        for case in range(count // 2):
            chance = random.Random(f"{seed} {capacity} {case}")
            cut(operations, lives, chance, tally)
    return tally


def remembered(capacity: int, chance: random.Random) -> tuple[list[Operation], dict[int, int]]:
    """All that a log did on its disk, and after which of it each block was acknowledged."""
    with tempfile.TemporaryDirectory(prefix="storelog-cut-") as folder:
        path, acknowledged_at = Path(folder), dict[int, int]()
        disk = RememberingDisk(path)
        log = opened(path, capacity, disk)
        work(log, chance, lambda it: acknowledged_at.setdefault(it, len(disk.operations)))
        log.close()
    return disk.operations, acknowledged_at


def lives_of(
    operations: list[Operation], acknowledged_at: dict[int, int]
) -> dict[int, tuple[int, int]]:
    """From which operation on a block must be there, and until which."""
    written: dict[tuple[str, int], int] = {}
    ends: dict[int, int] = {}
    number_of = {key(number): number for number in NUMBERS}
    for at, operation in enumerate(operations):
        place = (operation.name, operation.offset)
        if operation.what == "write" and len(operation.data) == len(EMPTY_SLOT):
            if operation.data == EMPTY_SLOT:
                ends[written[place]] = at
            else:
                number, slot = int(operation.name[:8]), operation.offset // SLOT_BYTES - 16
                commit = decode_commit(operation.data, number, slot)
                assert commit is not None
                written[place] = number_of[commit.record.key]
    return {
        number: (at, ends.get(number, len(operations) + 1))
        for number, at in acknowledged_at.items()
    }


def cut(
    operations: list[Operation],
    lives: dict[int, tuple[int, int]],
    chance: random.Random,
    tally: Tally,
) -> None:
    """The power fails after some operation."""
    at = chance.randrange(len(operations) + 1)
    due = {number for number, (begin, end) in lives.items() if begin <= at <= end}
    with tempfile.TemporaryDirectory(prefix="storelog-cut-") as folder:
        for name, content in after_power_loss(operations[:at], chance).items():
            (Path(folder) / name).write_bytes(content)
        look(Path(folder), tally, due)


def damages(count: int, seed: int) -> Tally:
    """Each is done to a copy of one good log, up to four times."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="storelog-damage-") as folder:
        good, other, bad = (Path(folder) / name for name in ("good", "other", "bad"))
        log = opened(good, 64 * 8 * BLOCK_BYTES)  # segments of 8 blocks
        put(log, *range(NUM_BLOCKS))
        log.close()
        foreign = BlockLog.open(other, 64 * 8 * BLOCK_BYTES, OTHER)
        for number in range(NUM_BLOCKS):
            foreign.put(*block(number, OTHER))
        foreign.flush()
        foreign.close()
        for case in range(count):
            shutil.copytree(good, bad)
            chance = random.Random(f"{seed} {case}")
            for _ in range(chance.randrange(1, 5)):
                chance.choice(DAMAGES)(bad, other, chance)
            look(bad, tally, set())
            shutil.rmtree(bad)
    return tally


def some_file(path: Path, chance: random.Random) -> Path:
    return chance.choice(sorted(path.iterdir()))


def place_in(content: bytearray, chance: random.Random) -> int:
    """Half of the time among headers and slots, which are the smaller part."""
    return chance.randrange(min(len(content), 8192) if chance.random() < 0.5 else len(content))


def truncate(path: Path, other: Path, chance: random.Random) -> None:
    file = some_file(path, chance)
    os.truncate(file, chance.randrange(file.stat().st_size + 1))


def flip(path: Path, other: Path, chance: random.Random) -> None:
    file = some_file(path, chance)
    content = bytearray(file.read_bytes())
    if content:
        content[place_in(content, chance)] ^= 1 << chance.randrange(8)
        file.write_bytes(content)


def scribble(path: Path, other: Path, chance: random.Random) -> None:
    file = some_file(path, chance)
    content = bytearray(file.read_bytes())
    if content:
        start, length = place_in(content, chance), chance.randrange(1, 9000)
        what = chance.randbytes(length) if chance.random() < 0.5 else bytes(length)
        content[start : start + length] = what
        file.write_bytes(content)


def repeat(path: Path, other: Path, chance: random.Random) -> None:
    """Pages of one file over those of another."""
    source, target = some_file(path, chance), some_file(path, chance)
    content, pages = bytearray(target.read_bytes()), source.read_bytes()
    start = chance.randrange(len(content) // 256 + 1) * 256
    from_ = chance.randrange(len(pages) // 256 + 1) * 256
    length = chance.choice((256, 4096, 16384))
    content[start : start + length] = pages[from_ : from_ + length]
    target.write_bytes(content)


def swap(path: Path, other: Path, chance: random.Random) -> None:
    one, two = some_file(path, chance), some_file(path, chance)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def replace(path: Path, other: Path, chance: random.Random) -> None:
    """By another model's of that name, or some of its pages."""
    file = some_file(path, chance)
    theirs = other / file.name
    if theirs.exists() and chance.random() < 0.5:
        shutil.copy(theirs, file)
    elif theirs.exists():
        content, pages = bytearray(file.read_bytes()), theirs.read_bytes()
        start, length = place_in(content or bytearray(1), chance), chance.randrange(1, 20000)
        content[start : start + length] = pages[start : start + length]
        file.write_bytes(content)


def remove(path: Path, other: Path, chance: random.Random) -> None:
    if len(list(path.iterdir())) > 1:
        some_file(path, chance).unlink()


DAMAGES = (truncate, flip, flip, scribble, repeat, swap, replace, remove)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    for name in ("kills", "power-cuts", "damages"):
        parser.add_argument(f"--{name}", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", help="where logs lie meanwhile (default: where TMPDIR says)")
    asked = parser.parse_args(arguments)
    tempfile.tempdir = asked.folder or tempfile.gettempdir()
    tallies = {
        "kills": kills(asked.kills, asked.seed),
        "power_cuts": power_cuts(asked.power_cuts, asked.seed),
        "damages": damages(asked.damages, asked.seed),
    }
    print(json.dumps({name: asdict(tally) for name, tally in tallies.items()}))
    good = all(
        not tally.wrong and not tally.failed_to_open and tally.found >= 0.99 * tally.acknowledged
        for tally in tallies.values()
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

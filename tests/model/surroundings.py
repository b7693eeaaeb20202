"""What is around the parts of the explored cluster. Owns the clock, names and memory they get, and what a wrong state raises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from engine.attesting import attested_scores, attested_tokens
from protocol.content_keys import root_key
from protocol.fingerprint import Fingerprint
from protocol.sleeping import Part

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from kvtransfer.pulling.pull import PullJob
    from protocol.errors import TransferError
    from protocol.sampling import ScoredToken

NOW_S = 100.0
LONG_AGO_S = -1.0


class Violation(AssertionError):
    """A promise does not hold in some state."""


class Frozen:
    """A clock that stands still."""

    def now_s(self) -> float:
        return NOW_S


class Memory:
    """Blocks of a pool, small enough to be part of a state."""

    def __init__(self, num_blocks: int, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self.content = bytearray(num_blocks * block_bytes)

    def block(self, block_id: int) -> memoryview:
        start = block_id * self.block_bytes
        return memoryview(self.content)[start : start + self.block_bytes]

    def give_back(self, part: Part) -> None:
        """Satisfies engine.resting.Resting: what is read of a pool that is away is wrong."""
        if part is Part.KV_CACHE:
            self.content[:] = b"\x5a" * len(self.content)

    def take_again(self, part: Part) -> None:
        """It can always be had."""

    def materials(self, block_ids: SequenceOf[int]) -> list[memoryview]:
        return [self.block(block_id) for block_id in block_ids]


def fingerprint(block_size: int) -> Fingerprint:
    return Fingerprint(
        model="mock",
        weights="w",
        tokenizer="t",
        dtype="bytes",
        layout="l",
        block_size=block_size,
        num_layers=1,
        num_kv_heads=1,
        head_dim=1,
        rope="none",
    )


class Letter(NamedTuple):
    """What a part sends: to whom, how it is taken there, and between which starts."""

    receiver: str
    kind: str
    receiver_start: str
    sender_start: str
    message: object


@dataclass(slots=True)
class CountedIds:
    """Satisfies protocol.ids.Ids; part of a worker's state."""

    worker_id: str
    start: int
    leases: int = 0

    @property
    def incarnation(self) -> str:
        return f"{self.worker_id}.{self.start}"

    def new_incarnation(self) -> str:
        self.start += 1
        return self.incarnation

    def new_lease_id(self) -> str:
        self.leases += 1
        return f"lease{self.leases}"


@dataclass(slots=True)
class Read:
    """One read into local blocks, in two halves; `stage` 2 has landed and waits for the loop."""

    job: PullJob
    stage: int = 0
    error: TransferError | None = None


def oracle(block_size: int, prompt: list[int], count: int) -> list[int]:
    """The tokens of a faultless engine."""
    return attested_tokens(root_key(fingerprint(block_size).hash_bytes(), ""), prompt, count)


def scores(block_size: int, prompt: SequenceOf[int]) -> list[ScoredToken]:
    """What a faultless engine says of a prompt."""
    return attested_scores(root_key(fingerprint(block_size).hash_bytes(), ""), prompt)

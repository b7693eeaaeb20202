"""One answer's sources: what is explored of them, what each had when the order was written, and how each of the three is made.
Owns the shapes and their faults; the moves are in `tests.model.sources`, loops, lenders and readers are production code.

    R computes an answer ── asks ──► L, a worker that lends what it has cached
                           └───────► S, a store: its pool, and a tier below it

The order names runs by what the coordinator knew: a block may have gone since (a stale index), goes while it is asked for, or never
comes. Memory that is given up is overwritten at once, so a block that is read without a promise shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

from kvtransfer.sharing.exchange import Load, Loaded
from kvtransfer.store.records import LogStats
from protocol.content_keys import block_keys, root_key
from protocol.messages.orders import Decode
from protocol.sampling import SamplingParams
from tests.model.configuration import Configuration
from tests.model.surroundings import fingerprint
from tests.model.worker_side import WorkerSide

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from kvtransfer.sharing.exchange import LowerTier
    from protocol.messages.records import PrefixRun

READER, STORE = "R", "S"
NAMES = (READER, "L", STORE)
REQUEST = "a"
GARBAGE = 0x5A


@dataclass(frozen=True)
class SourceFaults:
    """How often each may happen in one run. `evict`: everything that is not promised goes at a source. `tier`: a load
    brings less than it was asked for. `lose`: nothing is in the tier any more."""

    drop: int = 0
    crash: int = 0
    cancel: int = 0
    late: int = 0
    lease: int = 0
    flip: int = 0
    evict: int = 0
    tier: int = 0
    lose: int = 0


FAULTS = {each.name: index for index, each in enumerate(fields(SourceFaults))}


@dataclass(frozen=True)
class Sources(Configuration):
    """`runs`: (source, first token, end, whether perhaps more follows). `has`: which blocks of the prompt a source has in its pool;
    `below`: in the tier of the store."""

    runs: tuple[tuple[str, int, int, bool], ...] = ()
    has: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    below: tuple[int, ...] = ()
    budget: SourceFaults = field(default_factory=SourceFaults)


class Tier:
    """Under the store's pool. Satisfies kvtransfer.sharing.exchange.LowerTier; a load ends by an event."""

    def __init__(self) -> None:
        self.content: dict[bytes, bytes] = {}
        self.loads: list[Load] = []
        self.used_keys: set[bytes] = set()

    @property
    def stats(self) -> LogStats:
        return LogStats(blocks=len(self.content))

    def contains(self, key: bytes) -> bool:
        return key in self.content

    def load(self, load: Load) -> None:
        self.loads.append(load)

    def used(self, keys: SequenceOf[bytes], parent: bytes, block_ids: SequenceOf[int]) -> None:
        del parent, block_ids
        self.used_keys.update(keys)

    def keys(self) -> list[bytes]:
        return list(self.content)

    def take_changes(self) -> tuple[list[bytes], list[bytes]]:
        return [], []


class SourceSide(WorkerSide):
    """R, L or S. Every method is one event, as in WorkerSide."""

    def tier(self) -> LowerTier | None:
        self.below = Tier() if self.worker_id == STORE else None
        return self.below

    def roots(self) -> tuple[object, ...]:
        return (*super().roots(), self.below)

    def plant(self, key: bytes, content: bytes) -> None:
        """A block that was cached before anything began."""
        hold = self.pool.allocate(1, "before")
        assert hold is not None
        self.memory.block(hold.block_ids[0])[:] = content
        self.pool.store(hold.block_ids[0], key)
        hold.release()

    def evict(self) -> None:
        """Others need all the room that there is: what nobody was promised is overwritten."""
        hold = self.pool.allocate(self.pool.num_available, "others")
        assert hold is not None
        for block_id in hold.block_ids:
            self.memory.block(block_id)[:] = bytes([GARBAGE]) * self.memory.block_bytes
        hold.release()

    def end_load(self, count: int) -> None:
        """The oldest load brought so many blocks; into the others something was written, too."""
        assert self.below is not None
        load = self.below.loads.pop(0)
        for index, (key, block_id) in enumerate(zip(load.keys, load.block_ids, strict=True)):
            garbage = bytes([GARBAGE]) * self.memory.block_bytes
            content = self.below.content.get(key) if index < count else garbage
            self.memory.block(block_id)[:] = content or garbage
        self.loop.take(Loaded(load.number, count))
        self._after()

    def lose_tier(self) -> None:
        """The disk is gone, and nobody said so."""
        assert self.below is not None
        self.below.content.clear()

    @property
    def first_load(self) -> tuple[int, int] | None:
        """(blocks asked of the oldest load, those of them that are still there, up to the first that is not)."""
        if self.below is None or not self.below.loads:
            return None
        keys = self.below.loads[0].keys
        there = next((i for i, key in enumerate(keys) if key not in self.below.content), len(keys))
        return len(keys), there


def computed(configuration: Sources) -> dict[bytes, bytes]:
    """Every full block of the prompt as whoever computes it has it."""
    size, prompt = configuration.block_size, list(configuration.prompts[REQUEST])
    side = SourceSide(configuration, READER, 0)
    side.order(order_of(configuration, side, ()))
    while side.decode.has_work:
        side.step("decode")
    keys = block_keys(root_key(fingerprint(size).hash_bytes()), prompt, size)
    found = side.pool.cache.longest_prefix(keys)
    return {k: bytes(side.memory.block(b)) for k, b in zip(keys, found, strict=True)}


def order_of(configuration: Sources, side: SourceSide, runs: SequenceOf[PrefixRun]) -> Decode:
    prompt = list(configuration.prompts[REQUEST])
    return Decode(
        incarnation=side.incarnation,
        request_id=REQUEST,
        attempt=0,
        token_ids=prompt,
        num_prompt_tokens=len(prompt),
        sampling=SamplingParams(max_tokens=configuration.max_tokens, temperature=0.0),
        deadline_in_s=60.0,
        prefix_runs=list(runs),
    )


PROMPT = {REQUEST: (1, 2, 3, 4, 5, 6, 7)}
ROOM = {READER: 5, "L": 3, STORE: 4}
BOTH = (("L", 0, 2, False), (STORE, 2, 6, True))
TIERS = Sources(
    "memory and tier",
    PROMPT,
    blocks=ROOM,
    runs=BOTH,
    has={"L": (0,), STORE: (1,)},
    below=(2,),
)
GAP = Sources(
    "a gap between",
    PROMPT,
    blocks=ROOM,
    runs=(("L", 0, 2, False), (STORE, 4, 6, True)),
    has={"L": (0,), STORE: ()},
    below=(2,),
)
STALE = Sources(
    "a stale index",
    PROMPT,
    blocks=ROOM,
    runs=(("L", 0, 4, False), (STORE, 4, 6, True)),
    has={"L": (0,), STORE: (1,)},
    below=(1,),
)
NARROW = Sources(
    "a store without room",
    PROMPT,
    blocks={READER: 5, "L": 3, STORE: 2},
    runs=((STORE, 0, 6, True),),
    has={STORE: (0,)},
    below=(1, 2),
)
SHAPES = (TIERS, GAP, STALE, NARROW)


def with_faults(shape: Sources, *kinds: str) -> Sources:
    """That shape, with a budget of these."""
    budget = SourceFaults(**{kind: kinds.count(kind) for kind in kinds})
    name = " + ".join((shape.name, *kinds))
    return replace(shape, name=name, budget=budget)


ALONE = tuple(with_faults(shape, kind) for shape in SHAPES for kind in FAULTS)
PAIRS = tuple(
    with_faults(shape, *pair)
    for shape in SHAPES
    for pair in combinations_with_replacement(FAULTS, 2)
)

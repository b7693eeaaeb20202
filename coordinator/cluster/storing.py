"""What stores are told to keep, and what is known to be kept. Owns the write-behind: the prompts and answers whose blocks
should get to a store, and how much is ordered at a time.

    request sent, grows, ends ─► wanted ── a worker has the next blocks, the store lacks them ──► Keep ─► store
                                    ▲                                                              │
                                    └──────────────── BlocksChanged of both ───────────────────────┘

Nothing waits for it. Without a store nobody is asked what it has cached, and nothing here is done.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coordinator.cluster.block_index import BlockIndex
from protocol.content_keys import extend_keys, root_key
from protocol.messages.orders import Keep, ListBlocks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from coordinator.cluster.control_socket import Outgoing
    from coordinator.cluster.lifecycle import RequestLife
    from coordinator.cluster.registry import Registry, WorkerRecord
    from protocol.clock import Clock
    from protocol.messages.records import PeerAddress
    from protocol.messages.reports import BlocksChanged

MAX_WANTED = 1024
"""Prompts and answers that wait to be kept; the oldest is given up first."""
RUN_BLOCKS = 64
"""In one order: its holder proves them between two steps."""
ORDERS_AT_ONCE = 4
"""A store has so many orders at most that it has not obeyed."""
ORDER_S = 10.0
"""An order that shows no effect for so long is given up."""
AGAIN_S = 0.25
"""What a store could not read is ordered again after so long: who had it may have lost it, and says so."""
ASK_EVERY_S = 1.0
ORDER_EVERY_S = 0.05
FEW_WANTED = 64
"""Beyond so many, news of several workers are looked at together."""
WANTED_S = 15.0
"""What has not grown for so long is kept, or nobody has it any more."""


@dataclass(slots=True)
class _Wanted:
    """Blocks of one request. `kept` of them are known to be at its store; `ordered_until_s` bounds the order for the next;
    it grew last at `grew_s`."""

    root: bytes
    keys: list[bytes] = field(default_factory=list)
    store_id: str = ""
    kept: int = 0
    ordered_until_s: float | None = None
    grew_s: float = 0.0


class Storing:
    """`index` has what workers say; it is empty, and nobody says anything, until the first store joins."""

    def __init__(
        self, registry: Registry, outgoing: Outgoing, clock: Clock, block_size: int
    ) -> None:
        self.index = BlockIndex()
        self.ordered_blocks = 0
        self._registry = registry
        self._outgoing = outgoing
        self._clock = clock
        self._block_size = block_size
        self._wanted: OrderedDict[str, _Wanted] = OrderedDict()
        self._asked_s: dict[str, float] = {}
        self._store_ids: set[str] = set()
        self._next_order_s = 0.0
        self._memo: tuple[Sequence[int], str, list[bytes]] | None = None

    @property
    def stores(self) -> list[WorkerRecord]:
        """Those that may be asked now."""
        return [record for record in self._registry if record.keeps]

    @property
    def has_stores(self) -> bool:
        """Whether any is there, asleep or not."""
        return bool(self._store_ids)

    # ---- what is known

    def keys_of(self, token_ids: Sequence[int], salt: str) -> list[bytes]:
        """Content keys of a prompt's full blocks; of one prompt twice in a row they are made once."""
        if self._memo is not None and self._memo[0] is token_ids and self._memo[1] == salt:
            return self._memo[2]
        keys: list[bytes] = []
        if (root := self._root(salt)) is not None:
            extend_keys(keys, root, token_ids, self._block_size)
        self._memo = (token_ids, salt, keys)
        return keys

    def _root(self, salt: str) -> bytes | None:
        """All workers that are registered have one fingerprint."""
        record = next(iter(self._registry), None)
        return None if record is None else root_key(record.hello.fingerprint.hash_bytes(), salt)

    def tokens_at(self, token_ids: Sequence[int], salt: str) -> dict[str, int]:
        """How many of a prompt's first tokens each worker has cached, by its own words; of a store only one that may be
        asked. Empty without a store."""
        if not self.has_stores:
            return {}
        runs = self.index.runs(self.keys_of(token_ids, salt))
        keeping = {record.worker_id for record in self._registry if record.keeps or record.is_ready}
        return {name: run * self._block_size for name, run in runs.items() if name in keeping}

    def knows(self, record: WorkerRecord) -> bool:
        """Whether that worker told what it has."""
        return self.index.knows(record.worker_id, record.incarnation)

    def parking(self, life: RequestLife) -> PeerAddress | None:
        """Where a request's blocks are kept while it grows; None where nobody keeps them."""
        stores = {record.worker_id: record for record in self.stores}
        salt = life.generation.content_salt
        root = self._root(salt) if stores else None
        keys = self.keys_of(life.token_ids, salt) if stores else []
        if root is None or not keys:
            return None
        return stores[_home(root, keys[:1], stores)].hello.address

    # ---- what is wanted

    def grew(self, life: RequestLife) -> None:
        """A request was sent, or has written more: its blocks should be kept."""
        if life.is_tied or not self.has_stores:
            return
        wanted = self._wanted.get(life.request_id)
        if wanted is None:
            root = self._root(life.generation.content_salt)
            if root is None:
                return
            wanted = self._wanted[life.request_id] = _Wanted(root)
            while len(self._wanted) > MAX_WANTED:
                self._wanted.popitem(last=False)
        if life.num_tokens // self._block_size > len(wanted.keys):
            extend_keys(wanted.keys, wanted.root, life.token_ids, self._block_size)
        wanted.grew_s = self._clock.now_s()

    def joined(self, record: WorkerRecord) -> None:
        """A worker was registered; with the first store all are asked what they have."""
        if not record.role.computes:
            self._store_ids.add(record.worker_id)
        self._asked_s.pop(record.worker_id, None)
        self._ask()

    def said(self, record: WorkerRecord, message: BlocksChanged) -> None:
        """A worker says what it has: more may be kept now."""
        self.index.said(record.worker_id, message)
        if message.given_up:
            self._came_to_nothing(record.worker_id, set(message.given_up))
        if len(self._wanted) <= FEW_WANTED or self._clock.now_s() >= self._next_order_s:
            self._order()

    def _came_to_nothing(self, worker_id: str, first_keys: set[bytes]) -> None:
        """Those orders wait for no effect any more, and soon leave their place to others."""
        until_s = self._clock.now_s() + AGAIN_S
        for wanted in self._wanted.values():
            if wanted.store_id != worker_id or wanted.ordered_until_s is None:
                continue
            if wanted.keys[wanted.kept] in first_keys:
                wanted.ordered_until_s = min(wanted.ordered_until_s, until_s)

    def left(self, worker_id: str) -> None:
        """Its cache is gone; of a store, whatever it was told."""
        self.index.forget(worker_id)
        self._store_ids.discard(worker_id)
        self._asked_s.pop(worker_id, None)
        for wanted in self._wanted.values():
            if wanted.store_id == worker_id:
                wanted.store_id, wanted.kept, wanted.ordered_until_s = "", 0, None

    def tick(self) -> None:
        """Several times a second: ask who has not told, give up what nobody has."""
        if not self.has_stores:
            self._wanted.clear()
            return
        self._ask()
        now_s = self._clock.now_s()
        for name in [n for n, w in self._wanted.items() if now_s - w.grew_s > WANTED_S]:
            del self._wanted[name]
        self._order()

    def _ask(self) -> None:
        """Of everyone who has not told it: what is cached there."""
        now_s = self._clock.now_s()
        for record in self._registry if self.has_stores else ():
            if not self.knows(record) and self._is_due(record.worker_id, now_s):
                self._asked_s[record.worker_id] = now_s
                self._outgoing.send_order(record, ListBlocks(incarnation=record.incarnation))

    def _is_due(self, worker_id: str, now_s: float) -> bool:
        return now_s - self._asked_s.get(worker_id, float("-inf")) >= ASK_EVERY_S

    # ---- what is ordered

    def _order(self) -> None:
        """As much as the stores may have at a time, of the oldest wish first."""
        now_s = self._clock.now_s()
        self._next_order_s = now_s + ORDER_EVERY_S
        stores = {record.worker_id: record for record in self.stores}
        if not stores:
            return
        busy = dict.fromkeys(stores, 0)
        for wanted in self._wanted.values():
            self._note_kept(wanted, stores, now_s)
            if wanted.ordered_until_s is not None:
                busy[wanted.store_id] += 1
        for wanted in self._wanted.values():
            is_idle = wanted.ordered_until_s is None and wanted.kept < len(wanted.keys)
            if is_idle and busy[wanted.store_id] < ORDERS_AT_ONCE:
                busy[wanted.store_id] += self._order_next(wanted, stores[wanted.store_id], now_s)

    def _note_kept(self, wanted: _Wanted, stores: dict[str, WorkerRecord], now_s: float) -> None:
        """Its store is chosen by its first block, so that what begins alike meets: not before there is one."""
        if not wanted.keys:
            return
        if wanted.store_id not in stores:
            wanted.store_id, wanted.kept, wanted.ordered_until_s = "", 0, None
            wanted.store_id = _home(wanted.root, wanted.keys[:1], stores)
        run = self.index.run_at(wanted.store_id, wanted.keys[wanted.kept :])
        until_s = wanted.ordered_until_s
        if run or (until_s is not None and now_s > until_s):
            wanted.ordered_until_s = None
        wanted.kept += run

    def _order_next(self, wanted: _Wanted, store: WorkerRecord, now_s: float) -> bool:
        """The next blocks that it lacks, from whoever has most of them."""
        most = max(min(RUN_BLOCKS, store.hello.num_blocks // 4), 1)
        missing = wanted.keys[wanted.kept : wanted.kept + most]
        runs = self.index.runs(missing)
        holders = [
            record
            for name in runs
            if name != store.worker_id
            and (record := self._registry.get(name)) is not None
            and (record.is_ready or record.keeps)
        ]
        holder = max(holders, key=lambda record: runs[record.worker_id], default=None)
        if holder is None:
            return False
        keys = missing[: runs[holder.worker_id]]
        wanted.ordered_until_s = now_s + ORDER_S
        self.ordered_blocks += len(keys)
        self._outgoing.send_order(
            store,
            Keep(
                incarnation=store.incarnation,
                source=holder.hello.address,
                first_block=wanted.kept,
                parent=wanted.keys[wanted.kept - 1] if wanted.kept else wanted.root,
                keys=keys,
            ),
        )
        return True

    # ---- what is shown

    def view(self) -> dict[str, Any]:
        """`stores` of `GET /cluster`: what each has by tier, and what is still to be kept."""
        lag = sum(len(wanted.keys) - wanted.kept for wanted in self._wanted.values())
        return {
            "known_blocks": len(self.index),
            "resyncs": self.index.resyncs,
            "ordered_blocks": self.ordered_blocks,
            "unkept_blocks": lag,
        }


def _home(root: bytes, first: Iterable[bytes], stores: Iterable[str]) -> str:
    """Which store keeps what begins so: the same one whenever the same are there (rendezvous hashing, Thaler and
    Ravishankar 1996), so that all that shares a beginning is in one place."""
    name = b"".join((root, *first))
    return max(stores, key=lambda store: hashlib.blake2b(store.encode() + name).digest())

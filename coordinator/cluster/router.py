"""Which pair of workers serves a request. Owns the choice and the memory of prefixes; pure.

Prefill: done soonest by the work that is queued there and due before it, and by its own, counting tokens the worker probably has cached as
already done, and those that it can read from another worker's cache as nearly so. A prompt is bound to a worker late: while
every worker has enough to do before it, it waits in the line, where the best worker can still be chosen. Where prompts queue, a decode worker
that would be done sooner computes one itself. Decode: the longest probable cache hit among the workers within a tenth of the least promised share.
A pair whose transfer just failed is avoided for a while. Where there are stores, what is cached anywhere is known by the
workers' own words, and a store is a source like any worker; else it is guessed from what was sent where.
"""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from coordinator.cluster.source_planner import Source
from coordinator.planning.prompt_cost import PromptWork
from protocol.roles import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from coordinator.cluster.ledger import Ledger
    from coordinator.cluster.lifecycle import RequestLife
    from coordinator.cluster.registry import WorkerRecord
    from coordinator.cluster.source_planner import SourcePlanner
    from protocol.messages.records import PeerAddress
    from protocol.messages.reports import PrefixRead

PREFIX_STRIDE_BLOCKS = 4
FETCH_WORTH = 0.9
"""What a token read from another worker's cache saves, as a share of one that is cached already."""
MAX_PREFIXES = 65_536
TOKEN_BYTES = 8
BAD_PAIR_S = 5.0
SHARE_SLACK = 0.1
RESUMED_BLOCKS = 4
"""A replay that lacks no more of a store's blocks than so many goes to the decode worker at once."""
ENOUGH_PROMPTS, ENOUGH_STEPS = 2, 2
"""A worker has enough to do before a prompt with so many that are due first, if they fill so many steps."""
RELIEF_SPEED = 0.4
"""How fast a decode worker computes prompts beside its answers, a prefill worker being 1."""
RELIEF_CHUNKS = 8
"""A decode worker computes a prompt in pieces of a step's tokens divided by this: answers being written there
wait for one piece, not for a whole step."""


@dataclass(frozen=True, slots=True)
class Route:
    """`prefill` None: the decode worker computes the prompt itself. Who computes it reads what others have from `sources`, in
    the prompt's order. `chunk_tokens`: how much of a prompt the decode worker may compute in one step, beside the answers that it writes; 0 is no limit. `work_tokens`
    is what the prompt costs whoever computes it, 0 if nobody estimated it."""

    prefill: WorkerRecord | None
    decode: WorkerRecord
    chunk_tokens: int = 0
    sources: tuple[Source, ...] = ()
    work_tokens: int = 0

    @property
    def read_tokens(self) -> int:
        """How many tokens are to be read."""
        return sum(source.end - source.begin for source in self.sources)


class _Hits(NamedTuple):
    """Tokens cached by worker: `probable` ones, as costs are estimated, and those that a reader is sent for."""

    probable: dict[str, int]
    lent: dict[str, int]


def _piece_tokens(decode: WorkerRecord) -> int:
    return max(decode.hello.max_num_batched_tokens // RELIEF_CHUNKS, 1)


def _work(work: PromptWork, num_tokens: int, num_cached: int) -> int:
    """Of a prompt that is cached so far: its last token is computed all the same."""
    return work.tokens(num_tokens, min(num_cached, num_tokens - 1))


def stride_tokens(block_size: int) -> int:
    """In which strides prefixes are remembered."""
    return PREFIX_STRIDE_BLOCKS * block_size


class PrefixMemory:
    """Which workers have which prefix, in strides of some tokens; least recently used first out.

    It is a hint and proves nothing, so its hash need be quick and not hard to collide with."""

    def __init__(self, stride_tokens: int) -> None:
        self._stride = stride_tokens
        self._workers: OrderedDict[bytes, set[str]] = OrderedDict()
        self._last: tuple[Sequence[int], str, list[bytes]] | None = None

    def _keys(self, token_ids: Sequence[int], salt: str) -> list[bytes]:
        """Of the prompt's strides. A route is looked up and then remembered: the second time costs nothing."""
        if self._last is not None and self._last[0] is token_ids and self._last[1] == salt:
            return self._last[2]
        keys = list(self._chain(token_ids, salt))
        self._last = (token_ids, salt, keys)
        return keys

    def _chain(self, token_ids: Sequence[int], salt: str) -> Iterable[bytes]:
        parent = salt.encode()
        size = self._stride * TOKEN_BYTES
        tokens = array("q", token_ids).tobytes()
        for end in range(size, len(tokens) + 1, size):
            stride = tokens[end - size : end]
            parent = xxhash.xxh3_128_digest(parent + stride)
            yield parent

    def remember(self, token_ids: Sequence[int], salt: str, worker_ids: Iterable[str]) -> None:
        """These workers will hold the prefix."""
        names = set(worker_ids)
        for key in self._keys(token_ids, salt):
            known = self._workers.get(key)
            if known is None:
                self._workers[key] = set(names)
            else:
                known |= names
                self._workers.move_to_end(key)
        while len(self._workers) > MAX_PREFIXES:
            self._workers.popitem(last=False)

    def hits(self, token_ids: Sequence[int], salt: str) -> dict[str, int]:
        """Probable cached tokens of this prompt on each worker."""
        found: dict[str, int] = {}
        for index, key in enumerate(self._keys(token_ids, salt), start=1):
            names = self._workers.get(key)
            if not names:
                break
            found.update(dict.fromkeys(names, index * self._stride))
        return found

    def forget(self, worker_id: str) -> None:
        """The worker's cache is gone."""
        for names in self._workers.values():
            names.discard(worker_id)


class Router:
    """Chooses routes from what registry and ledger say."""

    def __init__(
        self,
        ledger: Ledger,
        prefixes: PrefixMemory,
        work: Callable[[], PromptWork] = PromptWork,
        *,
        relieves: bool = True,
        hands_over: bool = True,
        planner: SourcePlanner | None = None,
    ) -> None:
        self.ledger = ledger
        self.prefixes = prefixes
        self._work_now = work
        self._relieves = relieves
        self._hands_over = hands_over
        self._planner = planner
        self._storing = None if planner is None else planner.storing
        self._bad_pairs: dict[tuple[str, str], float] = {}

    def blame(self, prefill_id: str, decode_id: str, now_s: float) -> None:
        """A transfer between the two failed."""
        self._bad_pairs[(prefill_id, decode_id)] = now_s + BAD_PAIR_S

    def finished(self, life: RequestLife) -> None:
        """The next turn of a chat finds its history at the worker that generated it."""
        if life.decode_worker is not None:
            salt = life.generation.content_salt
            self.prefixes.remember(life.token_ids, salt, [life.decode_worker])
        self.grew(life)

    def sent(self, life: RequestLife, worker_ids: Iterable[str]) -> None:
        """These will have its prompt."""
        self.prefixes.remember(life.token_ids, life.generation.content_salt, worker_ids)
        self.grew(life)

    def grew(self, life: RequestLife) -> None:
        """There is more of a request to keep."""
        if self._storing is not None:
            self._storing.grew(life)

    def joined(self, worker: WorkerRecord) -> None:
        """A worker that may have something cached is here."""
        if self._storing is not None:
            self._storing.joined(worker)

    def left(self, worker_id: str) -> None:
        """The worker's cache is gone."""
        self.prefixes.forget(worker_id)
        if self._storing is not None:
            self._storing.left(worker_id)
        if self._planner is not None:
            self._planner.costs.forget(worker_id)

    def parking(self, life: RequestLife) -> PeerAddress | None:
        """Where a sequence that must give its blocks up finds them again."""
        may = self._storing is not None and not life.is_tied
        return self._storing.parking(life) if self._storing is not None and may else None

    def read(self, read: PrefixRead, source: WorkerRecord | None) -> None:
        """A reader measured what a run of blocks from there cost."""
        if self._planner is not None and source is not None:
            self._planner.told(read, from_store=not source.role.computes)

    def _hits(self, token_ids: Sequence[int], salt: str | None) -> _Hits:
        if salt is None:
            return _Hits({}, {})
        guessed = self.prefixes.hits(token_ids, salt)
        if self._storing is None or not self._storing.has_stores:
            return _Hits(guessed, guessed)
        told = self._storing.tokens_at(token_ids, salt)
        names = guessed.keys() | told.keys()
        return _Hits({n: max(guessed.get(n, 0), told.get(n, 0)) for n in names}, told)

    def choose(  # noqa: PLR0913 - all that is known of a request
        self,
        workers: Iterable[WorkerRecord],
        token_ids: Sequence[int],
        max_new_tokens: int,
        salt: str | None,
        now_s: float,
        due_s: float = math.inf,
        *,
        is_resumed: bool = False,
    ) -> Route | None:
        """The best pair with room for the request, or None when it must wait. `salt` None: nothing cached helps it.
        `is_resumed`: some of it was written before."""
        workers = list(workers)
        ready = [worker for worker in workers if worker.is_ready]
        decoders = [w for w in ready if w.role == Role.DECODE]
        prefillers = [w for w in ready if w.role == Role.PREFILL] if decoders else []
        need = self.ledger.decode_need(len(token_ids), max_new_tokens)
        fitting = [w for w in decoders or ready if self.ledger.fits_decode(w.worker_id, need)]
        if not prefillers:
            fitting = [w for w in fitting if not self._has_enough(w, due_s)]
        if not fitting:
            return None
        hits = self._hits(token_ids, salt)
        decode = self._choose_decode(fitting, hits.probable)
        work = self._work_of(len(token_ids), hits.probable)
        lenders = [*ready, *(worker for worker in workers if worker.keeps)]

        def sources_for(worker: WorkerRecord) -> tuple[Source, ...]:
            idle = [w for w in lenders if not self.ledger.queued_prefill_tokens(w.worker_id)]
            return self._choose_sources(idle, worker, token_ids, salt, hits.lent)

        def alone(chunk_tokens: int) -> Route:
            sources = sources_for(decode) if self._knows_all else ()
            return Route(None, decode, chunk_tokens, sources, work(decode))

        if not prefillers or (is_resumed and self._lacks_little(alone(0), len(token_ids), hits)):
            return alone(_piece_tokens(decode) if prefillers else 0)

        def until_done(worker: WorkerRecord) -> int:
            return self.ledger.queued_before(worker.worker_id, due_s).work_tokens + work(worker)

        prefill = self._choose_prefill(prefillers, decode, len(token_ids), until_done, now_s)
        if prefill is None:
            return None
        if self._relieves and self._is_sooner_at(decode, prefill, until_done, work):
            return alone(_piece_tokens(decode))
        if self._has_enough(prefill, due_s):
            return None
        return Route(prefill, decode, 0, sources_for(prefill), work(prefill))

    def _lacks_little(self, route: Route, num_tokens: int, hits: _Hits) -> bool:
        """Whether the route's decode worker finds nearly all that it needs, there or at the route's sources."""
        found = hits.lent.get(route.decode.worker_id, 0) + route.read_tokens
        return self._knows_all and num_tokens - found <= RESUMED_BLOCKS * self.ledger.block_size

    @property
    def _knows_all(self) -> bool:
        """Whether what is cached is known and not guessed."""
        return self._storing is not None and self._storing.has_stores

    def choose_successor(
        self,
        workers: Iterable[WorkerRecord],
        token_ids: Sequence[int],
        max_new_tokens: int,
        leaves: WorkerRecord,
    ) -> Route | None:
        """Who goes on with an answer whose KV is at a worker that leaves, and reads it there; None where nobody has room, or blocks
        are not found by their content."""
        need = self.ledger.decode_need(len(token_ids), max_new_tokens)
        fitting = [
            w
            for w in workers
            if self._hands_over
            and w.is_ready
            and w.role == Role.DECODE
            and w is not leaves
            and self.ledger.fits_decode(w.worker_id, need)
        ]
        if not fitting:
            return None
        decode = self._choose_decode(fitting, {})
        num_tokens = len(token_ids)
        rest = self._work_now().tokens(num_tokens, num_tokens - self.ledger.block_size)
        source = Source(leaves, 0, num_tokens)
        return Route(None, decode, _piece_tokens(decode), (source,), max(rest, 1))

    def expected_work(
        self, token_ids: Sequence[int], salt: str | None, work: PromptWork | None = None
    ) -> int:
        """What a prompt will cost where most of it is cached, as tokens; `work` is how they are counted as of now."""
        most = max(self._hits(token_ids, salt).probable.values(), default=0)
        return _work(work or self._work_now(), len(token_ids), most)

    def _work_of(self, num_tokens: int, hits: dict[str, int]) -> Callable[[WorkerRecord], int]:
        """What a prompt costs each worker."""
        work = self._work_now()
        fetched = int(FETCH_WORTH * max(hits.values(), default=0))

        def of(worker: WorkerRecord) -> int:
            return _work(work, num_tokens, max(hits.get(worker.worker_id, 0), fetched))

        return of

    def _has_enough(self, worker: WorkerRecord, due_s: float) -> bool:
        before = self.ledger.queued_before(worker.worker_id, due_s)
        enough_tokens = ENOUGH_STEPS * worker.hello.max_num_batched_tokens
        return before.prompts >= ENOUGH_PROMPTS and before.work_tokens >= enough_tokens

    @staticmethod
    def _is_sooner_at(
        decode: WorkerRecord,
        prefill: WorkerRecord,
        until_done: Callable[[WorkerRecord], int],
        work: Callable[[WorkerRecord], int],
    ) -> bool:
        """Whether the decode worker, beside its answers, computes the prompt before the prefill worker
        gets to its end. Not on account of less than one step: streams that are being written pay for it."""
        waits_for = until_done(prefill) - work(prefill)
        has_queue = waits_for >= prefill.hello.max_num_batched_tokens
        return has_queue and until_done(decode) / RELIEF_SPEED < until_done(prefill)

    def _choose_sources(
        self,
        lenders: list[WorkerRecord],
        computing: WorkerRecord,
        token_ids: Sequence[int],
        salt: str | None,
        hits: dict[str, int],
    ) -> tuple[Source, ...]:
        """Where it is known who has what: of each run whoever is cheapest. Where that is guessed: the worker with the longest
        prefix, if that is longer than what `computing` has itself.

        A worker with prompts to compute is no lender: it answers only between chunks, later than it would help."""
        if salt is None:
            return ()
        if self._knows_all and self._storing is not None and self._planner is not None:
            keys = self._storing.keys_of(token_ids, salt)
            return self._planner.plan(keys, len(token_ids), computing.worker_id, lenders)
        here = hits.get(computing.worker_id, 0)
        holders = [w for w in lenders if hits.get(w.worker_id, 0) > here]
        longest = max(holders, key=lambda w: hits[w.worker_id], default=None)
        if longest is None:
            return ()
        return (Source(longest, here, min(hits[longest.worker_id], len(token_ids) - 1)),)

    def _choose_decode(self, fitting: list[WorkerRecord], hits: dict[str, int]) -> WorkerRecord:
        shares = {w.worker_id: self.ledger.decode_share(w.worker_id) for w in fitting}
        limit = min(shares.values()) + SHARE_SLACK
        near = [w for w in fitting if shares[w.worker_id] <= limit]
        return max(near, key=lambda w: (hits.get(w.worker_id, 0), -shares[w.worker_id]))

    def _choose_prefill(
        self,
        prefillers: list[WorkerRecord],
        decode: WorkerRecord,
        num_tokens: int,
        until_done: Callable[[WorkerRecord], int],
        now_s: float,
    ) -> WorkerRecord | None:
        need = self.ledger.num_blocks(num_tokens)
        fitting = [w for w in prefillers if self.ledger.fits_prefill(w.worker_id, need)]
        good = [
            w for w in fitting if self._bad_pairs.get((w.worker_id, decode.worker_id), 0.0) <= now_s
        ]

        def soonest(worker: WorkerRecord) -> tuple[int, int]:
            return until_done(worker), self.ledger.queued_prefill_tokens(worker.worker_id)

        return min(good or fitting, key=soonest, default=None)

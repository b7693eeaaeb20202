"""One request inside a worker. Owns its tokens, its block table and how far it has been computed.

WAITING ─► RUNNING ─► FINISHED          PREEMPTED is WAITING with nothing computed
WAITING_FOR_REMOTE_KVS ◄─► RUNNING      (decode side of a handoff; a run that is being read)
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocol.content_keys import block_key
from protocol.failures import ErrorKind, Failure
from protocol.finish import FinishReason
from protocol.messages.records import PrefixRun
from protocol.sampling import Pooling
from protocol.spans import Span

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    import numpy as np
    import numpy.typing as npt

    from engine.grammar.guide import Guide
    from engine.kv.block_pool import Hold
    from engine.kv.coming import ComingRun
    from engine.kv.state_pool import StatePool
    from protocol.adapters import HeldAdapter
    from protocol.messages.records import PeerAddress
    from protocol.messages.reports import PrefixRead
    from protocol.sampling import SampledToken, SamplingParams, ScoredToken
    from protocol.spans import Spans


OVERFLOWN = Failure(
    ErrorKind.INTERNAL, "the adapter's numbers overflow: no finite logits came of them"
)


class SequenceStatus(enum.Enum):
    """Where a sequence is in its worker's scheduler."""

    WAITING = "waiting"
    WAITING_FOR_REMOTE_KVS = "waiting_for_remote_kvs"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens known so far, and the blocks that hold the KV of the first `num_computed_tokens`.

    `token_ids` starts with the client's prompt (`num_prompt_tokens` long); everything after it is
    output, including output of earlier attempts. `root` is the parent key of the first block.
    `due_s` is by when its prompt should be computed: the earliest goes first. `prefix_runs` are what other workers probably
    have of it, `coming` what of that is on its way, to be asked for while `is_read_due`, and `reads` how it went, not told yet;
    `parked_at` keeps its blocks, and it `was_preempted` if it once gave them up.
    `chunk_tokens` limits what a step may compute of it, together with others so limited (0: no limit);
    `prefix_fetch_s` is how long reading, or trying to, took in which nothing was computed; `computing_s` how long the steps that computed of it
    did. `guide` is how far the output is
    in its grammar, if it has one. Of a prompt that is scored the first `num_scored_tokens` are done, here or in earlier
    attempts; `scores` are the last of them, not told yet. `states` takes those of a prompt that is embedded, of which the
    first `num_pooled_tokens` are in it. `adapter` is what its tokens are computed with, beside the model; its digest is in `root`;
    `has_overflown` when that computed no finite numbers.
    """

    request_id: str
    attempt: int
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    root: bytes
    hold: Hold
    deadline_s: float = float("inf")
    due_s: float = 0.0
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    was_started: bool = False
    num_stored_blocks: int = 0
    status: SequenceStatus = SequenceStatus.WAITING
    keys: list[bytes] = field(default_factory=list)
    arrival_s: float = 0.0
    started_s: float = 0.0
    prefix_runs: SequenceOf[PrefixRun] = ()
    coming: list[ComingRun] = field(default_factory=list)
    is_read_due: bool = False
    reads: list[PrefixRead] = field(default_factory=list)
    parked_at: PeerAddress | None = None
    was_preempted: bool = False
    prefix_fetch_s: float = 0.0
    computing_s: float = 0.0
    chunk_tokens: int = 0
    guide: Guide | None = None
    adapter: HeldAdapter | None = None
    has_overflown: bool = False
    num_scored_tokens: int = 1
    scores: list[ScoredToken] = field(default_factory=list)
    states: StatePool | None = None
    num_pooled_tokens: int = 0

    @property
    def key(self) -> tuple[str, int]:
        """(request, attempt): what messages about this sequence name."""
        return (self.request_id, self.attempt)

    @property
    def num_tokens(self) -> int:
        """Prompt and output together."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens after the client's prompt, earlier attempts included."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def block_table(self) -> list[int]:
        """Block ids in token order."""
        return self.hold.block_ids

    @property
    def output_token_ids(self) -> SequenceOf[int]:
        """Tokens after the client's prompt."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def lacks_scores(self) -> bool:
        """Whether log-probabilities of its prompt are wanted that are not computed. No cache knows them."""
        is_scored = self.sampling.prompt_logprobs is not None
        return is_scored and self.num_scored_tokens < self.num_prompt_tokens

    @property
    def pooled(self) -> range:
        """Which of its tokens' states are still to go into its embedding. No cache knows them."""
        size = self.num_prompt_tokens
        match self.sampling.pooling:
            case None:
                return range(0)
            case Pooling.MEAN:
                return range(self.num_pooled_tokens, size)
            case Pooling.LAST:
                return range(max(self.num_pooled_tokens, size - 1), size)
            case Pooling.CLS:
                return range(self.num_pooled_tokens, 1)

    def take_states(self, states: npt.NDArray[np.float32], end: int) -> None:
        """Of the next tokens that count, up to `end`."""
        assert self.states is not None, "the scheduler made room for them"
        self.states.take(states)
        self.num_pooled_tokens = end

    @property
    def embedding(self) -> bytes:
        """What its prompt means, little-endian float32; b"" until all of it came."""
        return b"" if self.states is None or self.pooled else self.states.result()

    @property
    def num_reusable_tokens(self) -> int:
        """How many need not be computed, if they are cached: what is to be scored or pooled must be."""
        if self.lacks_scores:
            return self.num_scored_tokens - 1
        return self.pooled.start if self.pooled else self.num_tokens

    @property
    def is_handed_over(self) -> bool:
        """Whether one worker wrote it so far, and so has all of it."""
        is_all = any(run.end_tokens == self.num_tokens for run in self.prefix_runs)
        return is_all and self.num_output_tokens > 0

    @property
    def computable_end(self) -> int:
        """How far it is computed before something comes that is read."""
        return self.coming[0].begin if self.coming else self.num_tokens

    @property
    def lacks_read(self) -> bool:
        """Whether what follows is on its way."""
        return bool(self.coming) and self.coming[0].begin == self.num_computed_tokens

    def park(self) -> None:
        """Its blocks go to others: nothing is computed any more, but for what is kept elsewhere."""
        self.num_computed_tokens = self.num_stored_blocks = 0
        self.was_preempted = True
        self.prefix_runs = ()
        if self.parked_at is not None:
            size = self.num_tokens
            self.prefix_runs = (
                PrefixRun(source=self.parked_at, begin_tokens=0, end_tokens=size, is_open=True),
            )

    def take_reads(self) -> list[PrefixRead]:
        """Reads that ended and were not told; they are told now."""
        reads, self.reads = self.reads, []
        return reads

    def computed_for(self, seconds: float) -> None:
        """A step took so long, in which some of it was computed."""
        self.computing_s += seconds

    def prefix_was_read(self, seconds: float) -> None:
        """So long did it take to read what others have of it, or to give that up, while nothing of it was computed."""
        self.prefix_fetch_s += seconds

    def leave_to_source(self) -> None:
        """Another worker computes the prompt, and tells what is told of it."""
        self.num_scored_tokens = self.num_prompt_tokens
        self.num_pooled_tokens, self.states = self.num_prompt_tokens, None

    def score(self, scores: SequenceOf[ScoredToken]) -> None:
        """Of the next tokens of the prompt."""
        self.scores.extend(scores)
        self.num_scored_tokens += len(scores)

    def take_scores(self) -> tuple[int, list[ScoredToken]]:
        """What was not told, and of which token the first is; it is told now."""
        if self.sampling.prompt_logprobs is None:
            return 0, []
        scores, self.scores = self.scores, []
        return self.num_scored_tokens - len(scores), scores

    def extend(self, token: SampledToken) -> list[SampledToken]:
        """Add an output token, and return what is told of it: nothing where none was asked for."""
        if self.sampling.max_tokens == 0:
            return []
        self.append(token)
        return [token]

    def append(self, token: SampledToken) -> None:
        """Add an output token; its KV is not computed yet."""
        self.token_ids.append(token.token_id)
        if self.guide is not None:
            self.guide.accept(token.token_id)

    def output_failure(self) -> Failure | None:
        """Why the output cannot be told as it is."""
        if self.has_overflown:
            return OVERFLOWN
        guide = self.guide
        if guide is None or guide.failure is None:
            return None
        kind = ErrorKind.GRAMMAR_DEAD_END if guide.is_dead_end else ErrorKind.INTERNAL
        return Failure(kind, guide.failure)

    def prompt_spans(self, now_s: float) -> Spans:
        """Where the time from its arrival to its first token went: what was neither read nor computed was waited, before
        the first chunk or between two."""
        read_s, computing_s = self.prefix_fetch_s, self.computing_s
        waited_s = now_s - self.arrival_s - read_s - computing_s
        spans = {Span.QUEUE: waited_s, Span.PREFILL: computing_s}
        return spans | ({Span.PREFIX_FETCH: read_s} if read_s else {})

    def extend_keys(self, block_size: int, limit_tokens: int) -> list[bytes]:
        """Content keys of the full blocks within the first `limit_tokens` tokens."""
        while (len(self.keys) + 1) * block_size <= limit_tokens:
            start = len(self.keys) * block_size
            parent = self.keys[-1] if self.keys else self.root
            self.keys.append(block_key(parent, self.token_ids[start : start + block_size]))
        return self.keys[: limit_tokens // block_size]

    def finish_reason(self) -> tuple[FinishReason | None, int | None]:
        """(reason, stop token) that the newest output token brings, or (None, None)."""
        if self.num_output_tokens == 0:
            return (FinishReason.LENGTH if self.sampling.max_tokens == 0 else None), None
        newest = self.token_ids[-1]
        if self.num_output_tokens >= self.sampling.min_tokens:
            if newest in self.sampling.stop_token_ids:
                return FinishReason.STOP, newest
            if newest in self.sampling.eos_token_ids and not self.sampling.ignore_eos:
                return FinishReason.STOP, None
        if self.guide is not None and self.guide.is_finished:
            return FinishReason.STOP, None
        if self.num_output_tokens >= self.sampling.max_tokens:
            return FinishReason.LENGTH, None
        return None, None


@dataclass(frozen=True, slots=True)
class Scheduled:
    """One sequence's share of a step: compute `num_tokens` more; `samples` when that reaches its end."""

    sequence: Sequence
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Whether this step reaches the newest token, so that the next one can be chosen."""
        return self.sequence.num_computed_tokens + self.num_tokens == self.sequence.num_tokens

    @property
    def pooled(self) -> range:
        """Positions in this step whose hidden states go into the prompt's embedding."""
        wanted, start = self.sequence.pooled, self.sequence.num_computed_tokens
        first, end = max(wanted.start, start), min(wanted.stop, start + self.num_tokens)
        return range(first, max(first, end))

    @property
    def told(self) -> list[int]:
        """Positions in this step of which anything is told, ascending: those scored or pooled, and the one sampled from."""
        told = [*self.scored, *self.pooled]
        last = self.sequence.num_computed_tokens + self.num_tokens - 1
        return [*told, last] if self.samples and last not in told[-1:] else told

    @property
    def scored(self) -> range:
        """Positions in this step whose logits tell how likely the prompt's next token was, where nobody has told that."""
        sequence = self.sequence
        if not sequence.lacks_scores:
            return range(0)
        start = sequence.num_computed_tokens
        end = min(start + self.num_tokens, sequence.num_prompt_tokens - 1)
        return range(max(start, sequence.num_scored_tokens - 1), end)

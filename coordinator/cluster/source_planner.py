"""From what workers said of their blocks to the runs that a prompt's reader is sent for. Owns the spans of a prompt that the
same workers have; what is cheapest is chosen in `coordinator.planning.sources`.

    keys of the prompt ─ index ─► spans ─ measured costs ─► plan ─► runs, each with the worker that has it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.cluster.block_index import Tier
from coordinator.planning.prompt_cost import PRIOR_TOKEN_S, PromptCost
from coordinator.planning.read_costs import ReadCosts
from coordinator.planning.sources import Span, plan_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from coordinator.cluster.registry import WorkerRecord
    from coordinator.cluster.storing import Storing
    from coordinator.planning.read_costs import ReadCost
    from coordinator.planning.sources import SourceRun
    from protocol.clock import Clock
    from protocol.messages.reports import PrefixRead


@dataclass(frozen=True, slots=True)
class Source:
    """`worker` probably has tokens `begin` to `end`; `is_open`: perhaps more. `worth_s`: how long an answer is worth waiting
    for, 0 where that is not known."""

    worker: WorkerRecord
    begin: int
    end: int
    is_open: bool = True
    worth_s: float = 0.0


class SourcePlanner:
    """`prompt_cost` says what computing takes, None before that is known."""

    def __init__(
        self,
        storing: Storing,
        prompt_cost: Callable[[], PromptCost | None],
        clock: Clock,
        block_size: int,
    ) -> None:
        self.costs = ReadCosts()
        self.storing = storing
        self._index = storing.index
        self._prompt_cost = prompt_cost
        self._clock = clock
        self._block_size = block_size

    def plan(
        self, keys: Sequence[bytes], num_tokens: int, own: str, lenders: Iterable[WorkerRecord]
    ) -> tuple[Source, ...]:
        """What is read for a prompt that `own` computes; its last token is computed all the same."""
        by_name = {w.worker_id: w for w in lenders if w.worker_id != own}
        known = self._prompt_cost()
        cost = known or PromptCost(PRIOR_TOKEN_S)
        keys = keys[: (num_tokens - 1) // self._block_size]
        first = self._index.run_at(own, keys)
        token_s = cost.seconds(num_tokens) / num_tokens
        spans = self._spans(keys, first, by_name, token_s)
        runs = plan_sources(spans, lambda begin, end: cost.seconds(end, begin))
        return tuple(
            Source(
                by_name[run.source],
                run.begin,
                run.end,
                is_open=run is runs[-1] and not self._has_more(run.source, keys, run.end),
                worth_s=self._worth_s(run) if known else 0.0,
            )
            for run in runs
        )

    def _worth_s(self, run: SourceRun) -> float:
        return run.worth_s * self.costs.patience(run.source, self._clock.now_s())

    def _has_more(self, source: str, keys: Sequence[bytes], end: int) -> bool:
        """Whether the plan left some of what it has: then that is not to be read."""
        following = end // self._block_size
        return following < len(keys) and bool(self._index.tier(source, keys[following]))

    def _spans(
        self,
        keys: Sequence[bytes],
        first: int,
        lenders: dict[str, WorkerRecord],
        token_s: float,
    ) -> list[Span]:
        """Blocks side by side that the same lenders have, each in one tier."""
        size, spans = self._block_size, list[Span]()
        before: dict[str, bool] | None = None
        for number in range(first, len(keys)):
            tiers = self._index.holders(keys[number])
            here = {n: Tier.MEMORY not in tier for n, tier in tiers.items() if n in lenders}
            begin = number * size
            if here == before:
                begin = spans.pop().begin
            before = here
            spans.append(Span(begin, (number + 1) * size, self._costs(here, token_s)))
        return spans

    def _costs(self, holders: dict[str, bool], token_s: float) -> dict[str, ReadCost]:
        now_s = self._clock.now_s()
        return {
            name: self.costs.cost(name, now_s, token_s, from_disk=from_disk)
            for name, from_disk in holders.items()
        }

    def told(self, read: PrefixRead, *, from_store: bool) -> None:
        """A reader measured what a run cost. Where none came nobody said which tier was slow: of a store, its disk."""
        cost = self._prompt_cost() or PromptCost(PRIOR_TOKEN_S)
        self.costs.told(
            read.source,
            read.read_blocks * self._block_size,
            read.seconds,
            self._clock.now_s(),
            from_disk=bool(read.loaded_blocks) or (from_store and not read.read_blocks),
            computing_s=cost.seconds(read.asked_blocks * self._block_size),
        )

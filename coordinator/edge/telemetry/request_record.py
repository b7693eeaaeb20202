"""A finished request as it is told to people: the answer's `baton` field, and traces. Owns both shapes' source."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from coordinator.cluster.timeline import Stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.edge.telemetry.choice_meter import ChoiceMeter
    from protocol.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What a route knows before anything is generated. `arrival_s` is the first instant of all."""

    arrival_s: float
    operation: str = "chat"
    reply_id: str = ""
    label: str = ""
    model: str = ""
    response_model: str = ""
    adapter: str = ""
    is_stream: bool = False
    wants_timings: bool = False
    choices_per_prompt: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Timings:
    """`baton`: where the time of one answer went. `spans_ms` are consecutive and sum to `e2e_ms`."""

    spans_ms: dict[str, float]
    e2e_ms: float
    ttft_ms: float
    choice: int
    prefill_worker: str | None
    decode_worker: str | None
    replays: int
    transfer_bytes: int


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """A request that is over; `error` is None, or the type of what ended it."""

    facts: RequestFacts
    sampling: SamplingParams
    choices: Sequence[ChoiceMeter]
    end_s: float
    error: str | None = None

    @property
    def num_prompt_tokens(self) -> int:
        """Each prompt once, however many choices it has."""
        return sum(c.num_prompt_tokens for c in self.choices[:: self.facts.choices_per_prompt])


def cached_of_prompts(choices: Sequence[ChoiceMeter], facts: RequestFacts) -> list[int]:
    """Of each prompt, the tokens that were not computed for this request. What one choice of it computes others find
    cached: the one that found least says what was there before."""
    step = facts.choices_per_prompt
    groups = [choices[first : first + step] for first in range(0, len(choices), step)]
    return [
        min((c.num_cached_tokens for c in group if c.num_tokens), default=0) for group in groups
    ]


class TraceSink(Protocol):
    """Where finished requests are sent."""

    def record(self, record: RequestRecord) -> None:
        """Take a finished request; must not wait."""
        ...

    def close(self) -> None:
        """Send what is left, within a second."""
        ...


def timings_of(choices: Sequence[ChoiceMeter]) -> Timings:
    """The ledger of the choice that ended last: its spans cover the whole request."""
    index, last = max(enumerate(choices), key=lambda pair: (pair[1].end_s, pair[0]))
    spans_ms: dict[Stage, float] = defaultdict(float)
    for segment in last.segments():
        spans_ms[segment.stage] += segment.seconds * 1000
    attempts = last.timeline.attempts
    return Timings(
        spans_ms={stage: round(spans_ms[stage], 3) for stage in Stage if stage in spans_ms},
        e2e_ms=round((last.end_s - last.arrival_s) * 1000, 3),
        ttft_ms=round(((last.first_s or last.end_s) - last.arrival_s) * 1000, 3),
        choice=index,
        prefill_worker=last.timeline.opening.prefill_worker if attempts else None,
        decode_worker=attempts[-1].decode_worker if attempts else None,
        replays=last.timeline.replays,
        transfer_bytes=last.timeline.transfer_bytes,
    )

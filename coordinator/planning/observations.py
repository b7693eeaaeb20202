"""What the planner is told and what it answers. Owns the shapes; decides nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from coordinator.planning.sketch import Distribution
from protocol.roles import COMPUTING, Role

if TYPE_CHECKING:
    from coordinator.planning.capacity import StepCost

IDLE_S = 300.0
"""Without a request, before a pool that may be empty is."""
EMPTY_DECODE = "a range from 0 lets an idle model have no worker; prefill must begin at 0, too"

State = Literal["starting", "ready", "draining"]


@dataclass(frozen=True, slots=True)
class WorkerSight:
    """One worker. `in_state_s` is how long it has been what it is; `queued_tokens` are prompt tokens promised
    to it and not computed; `silent_s` is the age of what it last told."""

    worker_id: str
    role: Role
    state: State
    in_state_s: float
    queued_tokens: int = 0
    running: int = 0
    kv_share: float = 0.0
    silent_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Held:
    """How many requests were judged against a target lately, the share that held it, and the share that missed it and
    would not have on an idle worker."""

    count: float = 0.0
    share: float = 1.0
    blamable: float = 0.0


@dataclass(frozen=True, slots=True)
class Observations:
    """The cluster at `now_s`. `rate_short`, `_long` and `_slow` are requests a second over half a minute, two
    and ten minutes. Rates and distributions are of warm workers only; what is queued is what goes before a usual prompt: `queued_tokens` wait at the
    coordinator, those of workers are in `workers`, and `refused_tokens` would wait, had that share of what
    came not been turned away lately;
    `rate_ahead` is what is foreseen for when a worker that is ordered now is ready, None where nothing can be;
    `expected_service_s` is what prompts that came would cost at the speed that was seen first, for as long as too few
    have ended; `placed_s` is the mean time of the last two minutes from having workers to the first token,
    `prefill_share` how many prompts prefill workers computed, and not decode workers themselves. `ordered` workers there should be,
    whether they are here yet or not. Of all requests, `waiting`
    are in the line and `live` not over, and none came or was live for `idle_s`."""

    now_s: float
    workers: tuple[WorkerSight, ...]
    queued_requests: int = 0
    queued_tokens: int = 0
    refused_tokens: int = 0
    refused_share: float = 0.0
    oldest_wait_s: float = 0.0
    rate_short: float = 0.0
    rate_long: float = 0.0
    rate_slow: float = 0.0
    rate_ahead: float | None = None
    short_count: int = 0
    arrival_scv: float = 1.0
    prefill_tokens_per_s: float = 0.0
    service_s: Distribution = field(default_factory=Distribution)
    expected_service_s: Distribution = field(default_factory=Distribution)
    prompt_tokens: Distribution = field(default_factory=Distribution)
    output_tokens: Distribution = field(default_factory=Distribution)
    placed_s: float = 0.0
    prefill_share: float = 1.0
    step: StepCost | None = None
    room_sequences: float = 64.0
    ttft: Held = field(default_factory=Held)
    tpot: Held = field(default_factory=Held)
    ordered: int = 1
    waiting: int = 0
    live: int = 0
    idle_s: float = 0.0

    def of(self, role: Role, *states: str) -> list[WorkerSight]:
        """Workers of a role in one of `states`."""
        return [w for w in self.workers if w.role == role and w.state in states]

    def present(self) -> dict[Role, int]:
        """Workers of each role that serve or will."""
        return {role: len(self.of(role, "starting", "ready")) for role in COMPUTING}


@dataclass(frozen=True, slots=True)
class Targets:
    """In seconds. `goal` is the share of requests that must hold both."""

    ttft_s: float
    tpot_s: float
    goal: float = 0.9


@dataclass(frozen=True, slots=True)
class Range:
    """Workers of one role."""

    least: int
    most: int

    def clamp(self, number: int) -> int:
        """The nearest number within."""
        return min(max(number, self.least), self.most)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the planner may order. `budget` bounds all workers together, starting and draining ones too. A role whose range
    begins at 0 has no worker once nobody has asked for `idle_s`."""

    prefill: Range
    decode: Range
    budget: int
    idle_s: float = IDLE_S

    def of(self, role: Role) -> Range:
        """The role's range."""
        return self.prefill if role == Role.PREFILL else self.decode

    @property
    def may_sleep(self) -> bool:
        """Whether an idle cluster has no worker at all."""
        return self.prefill.least == self.decode.least == 0

    @property
    def awake(self) -> dict[Role, int]:
        """The fewest workers that serve."""
        decode = max(self.decode.least, 1)
        prefill = max(self.prefill.least, min(self.prefill.most, self.budget - decode, 1))
        return {Role.PREFILL: prefill, Role.DECODE: decode}


@dataclass(frozen=True, slots=True)
class Hold:
    """Change nothing."""

    reason: str


@dataclass(frozen=True, slots=True)
class Flip:
    """Let a worker play the other role."""

    worker_id: str
    role: Role
    reason: str


@dataclass(frozen=True, slots=True)
class Scale:
    """Have so many workers of each role, by starting or draining."""

    prefill: int
    decode: int
    reason: str

    def of(self, role: Role) -> int:
        """The role's number."""
        return self.prefill if role == Role.PREFILL else self.decode


Decision = Hold | Flip | Scale

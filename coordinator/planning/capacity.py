"""How many workers hold the targets, by queueing theory. Owns the two models; pure.

Prefill is G/G/c, short prompts first: a prompt of s seconds waits for those that are no longer (as in L. Schrage and L. Miller,
"The Queue M/G/1 with the Shortest Remaining Processing Time Discipline", 1966, the long ones' aging left out). With a = the load of
those, their arrival rate · mean service time, it waits with the probability C(c, a) of Erlang (1917), and
those that wait, wait exponentially with mean

    τ = E[S | S ≤ s] / (c - a) · (ca² + cs²) / 2

which is the Allen-Cunneen approximation (A. O. Allen, "Probability, Statistics, and Queueing Theory", 2nd ed.,
1990, §5.3; accuracy in W. Whitt, "Approximations for the GI/G/m queue", Production and Operations Management 2,
1993) with Kingman's exponential tail (1962). ca² is the measured dispersion of arrivals, cs² that of the service
times up to s. A first token is in time when wait + own service ≤ target, so attainment sums over the *measured*
distribution of service times: a long prompt that is late on an idle worker is late with any number of workers,
and no worker is added for it.

Decode is processor sharing, M/G/∞ in the number of sequences: a step takes base + per_sequence · n seconds, so by
Little's law a worker with arrival rate x and mean output o holds

    n = x·o·base / (1 - x·o·per_sequence)

sequences in the mean, and n varies like a Poisson number, whatever the distribution of lengths (insensitivity:
F. P. Kelly, "Reversibility and Stochastic Networks", 1979, §3). Tokens are in time while n is no more than what
fits the target and the worker's KV blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.planning.sketch import Distribution

MAX_WORKERS = 4096


@dataclass(frozen=True, slots=True)
class PrefillDemand:
    """Requests a second, what one needs of a worker in seconds, and how bursty they come (1: Poisson).
    `wait_scale` is how much of the modelled wait is really seen."""

    rate_per_s: float
    service_s: Distribution
    arrival_scv: float = 1.0
    wait_scale: float = 1.0

    @property
    def busy_workers(self) -> float:
        """Workers that are busy in the mean: `a` above."""
        return self.rate_per_s * self.service_s.mean


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of a decode step with n sequences: base + per_sequence · n."""

    base_s: float
    per_sequence_s: float

    def seconds(self, sequences: float) -> float:
        """Of one step."""
        return self.base_s + self.per_sequence_s * sequences

    def most_sequences(self, limit_s: float) -> float:
        """The largest n whose step is within `limit_s`; may be below zero."""
        if self.per_sequence_s <= 0:
            return math.inf if self.base_s <= limit_s else -1.0
        return (limit_s - self.base_s) / self.per_sequence_s


@dataclass(frozen=True, slots=True)
class DecodeDemand:
    """Requests a second, tokens of each after the first, the step's cost, and the sequences for which a
    worker has room. Blocks are reserved when a prompt is sent out, so those that prefill is computing,
    `prefilling` in the mean, take room too."""

    rate_per_s: float
    output_tokens: float
    step: StepCost
    room_sequences: float
    prefilling: float = 0.0

    def mean_sequences(self, workers: int) -> float:
        """On each worker; infinite when it cannot keep up."""
        tokens_per_s = self.rate_per_s * self.output_tokens / workers
        left = 1.0 - tokens_per_s * self.step.per_sequence_s
        return tokens_per_s * self.step.base_s / left if left > 0 else math.inf


def waiting_probability(workers: int, busy: float) -> float:
    """Erlang's C: the share of requests that find all workers busy."""
    if busy >= workers:
        return 1.0
    blocked = 1.0
    for number in range(1, workers + 1):
        blocked = busy * blocked / (number + busy * blocked)
    return blocked / (1.0 - busy / workers * (1.0 - blocked))


def prefill_attainment(demand: PrefillDemand, workers: int, ttft_s: float) -> float:
    """Share of requests whose wait and service end within `ttft_s`."""
    service = demand.service_s
    if not service.values or demand.rate_per_s <= 0:
        return service.share_within(ttft_s)
    attained, wait = 0.0, _Wait(demand, workers)
    for seconds, share in zip(service.values, service.shares, strict=True):
        wait.include(seconds, share)
        slack_s = ttft_s - seconds
        if slack_s < 0 or wait.is_endless:
            break
        attained += share * (1.0 - wait.share_beyond(slack_s))
    return attained


class _Wait:
    """What a prompt waits for: those that are no longer than it, included in rising order."""

    def __init__(self, demand: PrefillDemand, workers: int) -> None:
        self._demand, self._workers = demand, workers
        self._share = self._first = self._second = 0.0
        self._known: tuple[float, float] = (-1.0, 0.0)

    def include(self, seconds: float, share: float) -> None:
        """Prompts of that length."""
        self._share += share
        self._first += share * seconds
        self._second += share * seconds * seconds

    @property
    def _busy(self) -> float:
        return self._demand.rate_per_s * self._first

    @property
    def is_endless(self) -> bool:
        """Whether those alone are too much."""
        return self._workers <= self._busy

    def share_beyond(self, slack_s: float) -> float:
        """How many wait for longer than that."""
        if self._first <= 0:
            return 0.0
        mean_s = self._first / self._share
        scv = max(self._second / self._share / (mean_s * mean_s) - 1.0, 0.0)
        tail_s = mean_s / (self._workers - self._busy) * (self._demand.arrival_scv + scv) / 2
        tail_s *= self._demand.wait_scale
        return self._waits() * math.exp(-slack_s / tail_s) if tail_s > 0 else 0.0

    def _waits(self) -> float:
        """Erlang's C, anew once the load has grown by a twentieth: it is asked for every length."""
        busy, waits = self._known
        if self._busy > 1.05 * busy:
            busy, waits = self._known = self._busy, waiting_probability(self._workers, self._busy)
        return waits


def decode_attainment(demand: DecodeDemand, workers: int, tpot_s: float) -> float:
    """Share of requests that meet steps within `tpot_s` and find room."""
    if demand.rate_per_s <= 0 or demand.output_tokens <= 0:
        return 1.0
    room = demand.room_sequences - demand.prefilling / workers
    most = min(demand.step.most_sequences(tpot_s), room)
    mean = demand.mean_sequences(workers)
    if most < 1 or math.isinf(mean):
        return 0.0
    # A request sees the others and itself: what must fit beside it is one less.
    return _normal_below((most - 0.5 - mean) / math.sqrt(max(mean, 1e-9)))


def fewest_workers(
    attained: Callable[[int], float], goal: float, start: int = 1, limit: int = MAX_WORKERS
) -> int:
    """The least number that attains `goal`, by doubling and halving; `limit` when none does."""
    low, high = start - 1, start
    while high < limit and attained(high) < goal:
        low, high = high, min(high * 2, limit)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if attained(middle) >= goal else (middle, high)
    return high


def reachable_goal(goal: float, possible: float) -> float:
    """`goal`, or nearly all of what any number of workers could attain when that is less."""
    return min(goal, (1.0 + goal) / 2 * possible)


def _normal_below(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2.0))

"""What comes and what it costs, as the planner needs it. Owns windows, length distributions and step costs; pure.

Fed at admission, at each request's end, and with the counters of heartbeats. A worker's first requests and first
seconds are left out: caches are cold, kernels are compiled, memory is touched for the first time.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from coordinator.planning.capacity import StepCost
from coordinator.planning.forecast import Forecast
from coordinator.planning.needs import HELD_S
from coordinator.planning.observations import Held, Targets
from coordinator.planning.prompt_cost import PromptCostFit
from coordinator.planning.sketch import Arrivals, Distribution, SlidingSketch

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from protocol.worker_load import WorkerLoad

SHORT_S, LONG_S, SLOW_S = 30.0, 120.0, 600.0
COLD_REQUESTS = 3
COLD_S = 10.0
NO_TARGETS = Targets(math.inf, math.inf)
MAX_REFUSED = 4096
MEMORY_S = 60.0
"""After so many seconds of steps, a fit of the step's cost remembers half of the weight."""


@dataclass(slots=True)
class StepFit:
    """seconds = base + per_sequence · n by least squares, older samples fading.

    While all samples have nearly the same n the two cannot be told apart; a faint sample says that an empty
    step costs half as much as the mean one, and vanishes beside real differences."""

    weight: float = 0.0
    n: float = 0.0
    t: float = 0.0
    nn: float = 0.0
    nt: float = 0.0

    def add(self, sequences: float, seconds: float, steps: int) -> None:
        """`steps` steps of mean size `sequences` took `seconds` each."""
        keep = 0.5 ** (steps * seconds / MEMORY_S)
        self.weight = self.weight * keep + steps
        self.n = self.n * keep + steps * sequences
        self.t = self.t * keep + steps * seconds
        self.nn = self.nn * keep + steps * sequences * sequences
        self.nt = self.nt * keep + steps * sequences * seconds

    def cost(self) -> StepCost | None:
        """None before the first sample."""
        if self.weight <= 0:
            return None
        faint = 0.02 * self.weight
        weight, mean_s = self.weight + faint, self.t / self.weight
        n, t = self.n, self.t + faint * 0.5 * mean_s
        spread = weight * self.nn - n * n
        slope = (weight * self.nt - n * t) / spread if spread > 1e-12 else 0.0
        slope = min(max(slope, 0.0), t / n if n > 0 else 0.0)
        return StepCost(max((t - slope * n) / weight, 0.0), slope)


@dataclass(slots=True)
class _Counters:
    """What a worker had counted at its last look."""

    prefill_tokens: int
    decode_tokens: int
    steps: int
    step_s: float
    in_state_s: float


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """A request that ended well, in instants of one clock. `worker` computed the prompt in the attempt that brought the first
    token, apart from the decode worker or there, and had both workers from `dispatched_s` on; `first_s` and `last_s` are the client's first token and last, or the end of
    an answer without any."""

    worker: str
    is_prefilled_apart: bool
    num_prompt_tokens: int
    num_output_tokens: int
    submitted_s: float
    dispatched_s: float
    first_s: float | None
    last_s: float | None
    prefill_s: float | None
    prefix_fetch_s: float
    replays: int
    num_cached_tokens: int = 0
    is_scored: bool = False


class _Verdict(NamedTuple):
    """Whether a request held a target, and whether it missed it for want of workers."""

    is_held: bool
    is_blamable: bool


@dataclass(slots=True)
class DemandBook:
    """One for the cluster. `targets` say what counts as held. `first_tokens_per_s` is the speed of prefill as the first
    seconds showed it, which may be too slow: it serves until `prefill_tokens_per_s` is known."""

    targets: Targets = NO_TARGETS
    arrivals: Arrivals = field(default_factory=Arrivals)
    forecast: Forecast = field(default_factory=Forecast)
    step: StepFit = field(default_factory=StepFit)
    prefill_tokens_per_s: float = 0.0
    first_tokens_per_s: float = 0.0
    prompt_cost: PromptCostFit = field(default_factory=PromptCostFit)
    last_arrival_s: float = float("-inf")
    _service_s: SlidingSketch = field(default_factory=lambda: SlidingSketch(SLOW_S, 30.0))
    _prompts: SlidingSketch = field(default_factory=lambda: SlidingSketch(SLOW_S, 30.0))
    _outputs: SlidingSketch = field(default_factory=lambda: SlidingSketch(SLOW_S, 30.0))
    _resident: SlidingSketch = field(default_factory=lambda: SlidingSketch(SLOW_S, 30.0))
    _placed_s: SlidingSketch = field(default_factory=lambda: SlidingSketch(LONG_S, 10.0))
    _at_prefill: SlidingSketch = field(default_factory=lambda: SlidingSketch(SLOW_S, 30.0))
    _refused: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=MAX_REFUSED))
    _judged: deque[tuple[float, _Verdict, _Verdict | None]] = field(default_factory=deque)
    _finished_by: dict[str, int] = field(default_factory=dict)
    _counters: dict[str, _Counters] = field(default_factory=dict)

    # ---- the service's side

    def arrived(self, now_s: float, prompts: Mapping[int, int]) -> None:
        """Requests were admitted or refused: they came. `prompts` is how many have so many tokens."""
        count = sum(prompts.values())
        self.arrivals.add(now_s, count)
        self.forecast.add(now_s, count)
        self.last_arrival_s = now_s
        for num_tokens, alike in prompts.items():
            self._prompts.add(now_s, num_tokens, alike)

    def is_possible(self, work_tokens: Collection[int]) -> bool:
        """Whether idle workers are quick enough for the prompts of a request, which are computed beside each other."""
        token_s = self.prompt_cost.work().token_s or 0.0
        return max(work_tokens) * token_s <= self.targets.ttft_s

    def refused(self, now_s: float, work_tokens: Collection[int]) -> None:
        """A request was turned away, whose prompts are so much work: no target was held; for want of workers only if idle
        ones are quick enough."""
        if is_possible := self.is_possible(work_tokens):
            self._refused.append((now_s, sum(work_tokens)))
        self._judge(now_s, _Verdict(is_held=False, is_blamable=is_possible), None)

    def judge_by(self, targets: Targets) -> None:
        """What counts as held from now on."""
        self.targets = targets

    def finished(self, now_s: float, request: FinishedRequest) -> None:
        """A request ended well."""
        first_s, last_s = request.first_s, request.last_s
        if first_s is None or last_s is None or self._is_cold(request.worker):
            return
        num_output = request.num_output_tokens
        self._outputs.add(now_s, num_output)
        resident = request.num_prompt_tokens + num_output / 2
        self._resident.add(now_s, resident, max(num_output, 1))
        self._at_prefill.add(now_s, float(request.is_prefilled_apart))
        if request.is_prefilled_apart and request.prefill_s is not None:
            self._service_s.add(now_s, request.prefill_s + request.prefix_fetch_s)
            if request.replays == 0 and not request.is_scored:  # scores cost more than tokens
                begin = request.num_cached_tokens
                self.prompt_cost.add(request.num_prompt_tokens, begin, request.prefill_s)
        ttft_s = first_s - request.submitted_s
        self._placed_s.add(now_s, first_s - request.dispatched_s)
        tpot = None
        if num_output > 1 and request.replays == 0:
            in_time = (last_s - first_s) / (num_output - 1) <= self.targets.tpot_s
            tpot = _Verdict(in_time, not in_time)
        in_time = ttft_s <= self.targets.ttft_s
        own_s = self._own_s(request)
        self._judge(now_s, _Verdict(in_time, not in_time and own_s <= self.targets.ttft_s), tpot)

    def _own_s(self, request: FinishedRequest) -> float:
        """What a prompt costs without anybody before it; from its length where that was not measured apart."""
        if request.is_prefilled_apart and request.prefill_s is not None:
            return request.prefill_s + request.prefix_fetch_s
        speed = self.prefill_tokens_per_s or self.first_tokens_per_s
        return request.num_prompt_tokens / speed if speed else 0.0

    def _is_cold(self, worker_id: str) -> bool:
        """Count what a worker finished; its first few say nothing."""
        count = self._finished_by.get(worker_id, 0) + 1
        self._finished_by[worker_id] = count
        return count <= COLD_REQUESTS

    def _judge(self, now_s: float, ttft: _Verdict, tpot: _Verdict | None) -> None:
        self._judged.append((now_s, ttft, tpot))
        while self._judged[0][0] < now_s - HELD_S:
            self._judged.popleft()

    # ---- what heartbeats counted

    def looked(self, worker_id: str, load: WorkerLoad, in_state_s: float) -> None:
        """A worker's counters now; what it did since the last look is one sample."""
        now = _Counters(
            load.prefill_tokens, load.decode_tokens, load.steps, load.step_s, in_state_s
        )
        before = self._counters.get(worker_id)
        self._counters[worker_id] = now
        if before is None or now.steps < before.steps or before.in_state_s > in_state_s:
            return
        steps, seconds = now.steps - before.steps, now.step_s - before.step_s
        prompt = now.prefill_tokens - before.prefill_tokens
        written = now.decode_tokens - before.decode_tokens
        if prompt and not written and seconds > 0:
            self.first_tokens_per_s = max(self.first_tokens_per_s, prompt / seconds)
        if in_state_s < COLD_S:
            return
        if steps and written and not prompt:
            self.step.add(written / steps, seconds / steps, steps)
        elif prompt and not written and seconds > 0:
            rate, share = prompt / seconds, min(seconds / 10.0, 1.0)
            known = self.prefill_tokens_per_s
            self.prefill_tokens_per_s = known + share * (rate - known) if known else rate

    def forget(self, worker_ids: set[str]) -> None:
        """Only these workers are there; one that comes back is cold."""
        for name in set(self._counters) - worker_ids:
            del self._counters[name]
            self._finished_by.pop(name, None)

    # ---- the planner's side

    def service_s(self, now_s: float) -> Distribution:
        """Seconds of a prefill worker for one prompt."""
        return self._service_s.over(now_s, SLOW_S)

    def usual_prompt_s(self, now_s: float) -> float:
        """What a prompt that an idle worker is quick enough for costs in the mean; longer than any while nothing is
        known. A queue is what goes before such a prompt."""
        service = self.service_s(now_s)
        possible = service.share_within(self.targets.ttft_s)
        if not service.values or not possible:
            return math.inf
        pairs = zip(service.values, service.shares, strict=True)
        return sum(v * s for v, s in pairs if v <= self.targets.ttft_s) / possible

    def refused_lately(self, now_s: float) -> tuple[int, float]:
        """Work that was turned away in the last half minute, and the share of what came: where the line is short by its
        bound, this is the queue."""
        recent = [tokens for at_s, tokens in self._refused if at_s >= now_s - SHORT_S]
        came, _ = self.arrivals.in_window(now_s, SHORT_S)
        return sum(recent), min(len(recent) / max(came, 1), 1.0)

    def expected_service_s(self, now_s: float) -> Distribution:
        """What the prompts that came cost, by their lengths; empty when no speed is known."""
        speed = self.prefill_tokens_per_s or self.first_tokens_per_s
        return self.prompt_tokens(now_s).scaled(1.0 / speed) if speed else Distribution()

    def prompt_tokens(self, now_s: float) -> Distribution:
        """Lengths of what came."""
        return self._prompts.over(now_s, SLOW_S)

    def output_tokens(self, now_s: float) -> Distribution:
        """Lengths of what was written."""
        return self._outputs.over(now_s, SLOW_S)

    def placed_s(self, now_s: float) -> float:
        """From having workers to the first token, in the mean, while blocks are reserved and nothing is written; 0 unknown."""
        return self._placed_s.over(now_s, LONG_S).mean

    def prefill_share(self, now_s: float) -> float:
        """How many prompts prefill workers computed, and not decode workers themselves; 1 unknown."""
        placed = self._at_prefill.over(now_s, SLOW_S)
        return placed.mean if placed.count else 1.0

    def resident_tokens(self, now_s: float) -> float:
        """Tokens that a sequence holds in the mean, each moment of its writing counted alike; 0 unknown."""
        return self._resident.over(now_s, SLOW_S).mean

    def held(self, now_s: float) -> tuple[Held, Held]:
        """Of the last minute: first tokens in time, and following tokens in time."""
        recent = [(ttft, tpot) for at_s, ttft, tpot in self._judged if at_s >= now_s - HELD_S]
        return _held([ttft for ttft, _ in recent]), _held([p for _, p in recent if p is not None])


def _held(verdicts: list[_Verdict]) -> Held:
    count = len(verdicts)
    if not count:
        return Held()
    blamable = sum(verdict.is_blamable for verdict in verdicts)
    return Held(count, sum(verdict.is_held for verdict in verdicts) / count, blamable / count)

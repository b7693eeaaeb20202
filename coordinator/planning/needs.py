"""How many workers of each role are needed, now and lately. Owns the needs' history and what reality taught; pure.

A need is taken twice from the models in `coordinator.planning.capacity`: `now`, at the measured rate, and `relaxed`, at
that rate and a quarter more. Workers are added for `now` and removed by what covered `relaxed` through a long window:
between the two lies the hysteresis. Where a role misses its target although the models say it has enough, the
load of each of its workers at that moment is remembered, and no worker is planned to carry as much for a while.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.planning.capacity import (
    DecodeDemand,
    PrefillDemand,
    decode_attainment,
    fewest_workers,
    prefill_attainment,
    reachable_goal,
)
from protocol.roles import Role

if TYPE_CHECKING:
    from coordinator.planning.observations import Limits, Observations, Targets

RELAXED = 1.1
"""Workers are removed only if the rest could carry this much of the load."""
MIN_SAMPLES = 20
"""Finished requests before the models are believed."""
FORGIVEN = 0.1
"""A window's highest needs that do not keep workers from being removed: a spike is over when it is over."""
BURST_SIGMAS = 5.0
"""The short window's rate counts when it is above the long one's by more than chance would have it."""
FULL_SHARE = 0.9
FULL_KEPT_S = 600.0
"""Decode workers that were full do not become fewer for so long: requests were waiting, or were refused."""
WAIT_MARGIN, WAIT_STEP, LEAST_WAIT = 0.01, 1.02, 0.2
LEAST_SHARE = 0.5
"""Relief by decode workers is not counted on for more than the rest."""
HELD_S = 60.0
"""How far back requests are looked at, to see whether targets are held."""
RECOVER_S = 30.0
"""A queue should be gone after so long, or after four TTFTs when that is more."""
LEARNED_S = 1800.0
MAX_LEARNED_S = 4 * 3600.0
MISS_TICKS = 5
MISS_MARGIN = 0.02
LESSON_SLACK = 1.1
"""A role keeps its workers while its load is within a tenth of where it failed with one less."""


@dataclass(frozen=True, slots=True)
class Need:
    """Workers of one role: `now` to hold the targets, `relaxed` to hold them with more load. `load` is in
    workers' worth of work, None while too little is known."""

    now: int
    relaxed: int
    why: str
    load: float | None = None


def rate_now(seen: Observations) -> float:
    """Requests a second: the long window's, or the short one's when it rose beyond chance."""
    long = seen.rate_long
    if seen.short_count <= 0 or seen.rate_short <= long:
        return long
    window_s = seen.short_count / seen.rate_short
    spread = math.sqrt(max(long * window_s, 1.0) * max(seen.arrival_scv, 1.0)) / window_s
    return seen.rate_short if seen.rate_short > long + BURST_SIGMAS * spread else long


def relaxed_rate(seen: Observations) -> float:
    """The rate by which workers are removed: a dip of two minutes is not believed."""
    return RELAXED * max(rate_now(seen), seen.rate_slow)


def prefill_demand(
    seen: Observations, rate: float | None = None, wait_scale: float = 1.0
) -> PrefillDemand:
    """What comes to the prefill workers: decode workers that relieve them go on doing so."""
    rate = rate_now(seen) if rate is None else rate
    rate *= max(seen.prefill_share, LEAST_SHARE)
    return PrefillDemand(rate, seen.service_s, seen.arrival_scv, wait_scale)


def decode_demand(seen: Observations, rate: float | None = None) -> DecodeDemand | None:
    """What comes to the decode workers; None until a step was measured."""
    if seen.step is None:
        return None
    tokens = max(seen.output_tokens.mean - 1.0, 0.0)
    rate = rate_now(seen) if rate is None else rate
    prefilling = rate * max(seen.first_token_s, seen.service_s.mean)
    return DecodeDemand(rate, tokens, seen.step, seen.room_sequences, prefilling)


@dataclass(slots=True)
class _Lesson:
    """No worker is planned to carry `load_per_worker` again before `until_s`."""

    load_per_worker: float
    until_s: float
    hold_s: float


@dataclass(slots=True)
class Needs:
    """Told of every observation; a role's history begins with the first one that the models believe."""

    targets: Targets
    limits: Limits
    kept_s: float
    last: dict[Role, Need] = field(default_factory=dict)
    _history: dict[Role, deque[tuple[float, int]]] = field(
        default_factory=lambda: {role: deque() for role in Role}
    )
    wait_scale: float = 1.0
    _full: tuple[int, float] = (0, float("-inf"))
    _since_s: dict[str, float] = field(default_factory=dict)
    _queued_s: float = float("-inf")
    _misses: dict[Role, int] = field(default_factory=lambda: dict.fromkeys(Role, 0))
    _lessons: dict[str, _Lesson] = field(default_factory=dict)

    def update(
        self, seen: Observations, *, is_settled: bool, is_comparable: bool = False
    ) -> dict[Role, Need]:
        """Needs as of now. `is_settled`: what is seen is the work of the workers that are there;
        `is_comparable`: for the most part."""
        if is_comparable:
            self._compare_waits(seen)
        for role in Role:
            need = self._prefill(seen) if role == Role.PREFILL else self._decode(seen)
            if is_settled:
                self._learn(seen, role, need)
            need = self._with_lesson(seen, role, need)
            self.last[role] = need
            history = self._history[role]
            if need.load is not None:
                self._since_s.setdefault(role, seen.now_s)
                history.append((seen.now_s, max(need.now, need.relaxed)))
            while history and history[0][0] < seen.now_s - self.kept_s:
                history.popleft()
        return self.last

    def attainment(self, seen: Observations, role: Role, workers: int) -> float:
        """What the models expect of so many workers; 1 when they know nothing."""
        if workers <= 0:
            return 0.0
        if role == Role.PREFILL:
            demand = prefill_demand(seen, wait_scale=self.wait_scale)
            return prefill_attainment(demand, workers, self.targets.ttft_s)
        load = decode_demand(seen)
        return 1.0 if load is None else decode_attainment(load, workers, self.targets.tpot_s)

    def _compare_waits(self, seen: Observations) -> None:
        """Move the scale of waits towards what is seen: slowly down, three times as fast up.

        Real waits are shorter where decode workers compute prompts too and where a tail is cut by the router,
        longer where its choices are poor. Where hardly anybody waits there is nothing to compare."""
        ready = len(seen.of(Role.PREFILL, "ready"))
        if seen.ttft.count < MIN_SAMPLES or seen.service_s.count < MIN_SAMPLES or not ready:
            return
        expected = self.attainment(seen, Role.PREFILL, ready)
        if seen.ttft.share > expected + WAIT_MARGIN:
            self.wait_scale = max(self.wait_scale / WAIT_STEP, LEAST_WAIT)
        elif seen.ttft.share < expected - WAIT_MARGIN:
            self.wait_scale = min(self.wait_scale * WAIT_STEP**3, 1.0)

    @property
    def echo_s(self) -> float:
        """For so long, requests are judged that met the state of before."""
        return HELD_S + 2 * self.targets.ttft_s

    def is_decode_full(self, seen: Observations) -> bool:
        """Whether requests wait because every decode worker has as many as it can take.

        Promised blocks alone do not tell: where prompts queue for prefill beyond what the target allows, it is
        for them that the blocks are promised, and more decode workers would only let more prompts queue."""
        decoders = seen.of(Role.DECODE, "ready")
        if not seen.queued_requests or not decoders:
            return False
        if all(w.running >= FULL_SHARE * seen.room_sequences for w in decoders):
            return True
        is_promised = all(w.kv_share >= FULL_SHARE for w in decoders)
        return is_promised and self._waits_s(seen, 0) <= self._slack_s(seen)

    def floor(self, role: Role, now_s: float, window_s: float) -> int | None:
        """What covered the relaxed need for all but FORGIVEN of the window; None when the window is not known
        in full."""
        history = self._history[role]
        recent = sorted(need for at_s, need in history if at_s >= now_s - window_s)
        if not recent or now_s - self._since_s[role] < window_s:
            return None
        floor = max(recent[math.ceil((1.0 - FORGIVEN) * len(recent)) - 1], history[-1][1])
        count, until_s = self._full
        return max(floor, count) if role == Role.DECODE and now_s < until_s else floor

    # ---- the models

    def _prefill(self, seen: Observations) -> Need:
        present = seen.present()[Role.PREFILL]
        if seen.service_s.count < MIN_SAMPLES:
            return self._unknown(seen, Role.PREFILL, present)
        goal = reachable_goal(self.targets.goal, seen.service_s.share_within(self.targets.ttft_s))

        def fewest(rate: float) -> int:
            demand = prefill_demand(seen, rate, self.wait_scale)
            return fewest_workers(
                lambda n: prefill_attainment(demand, n, self.targets.ttft_s),
                goal,
                limit=max(self.limits.prefill.most, 1) + 1,
            )

        busy = prefill_demand(seen).busy_workers
        now, why = (
            fewest(rate_now(seen)),
            f"{rate_now(seen):.2f} requests/s keep {busy:.2f} prefill busy",
        )
        queue, backlog_s = self._for_queue(seen, busy)
        if queue or self.is_decode_full(seen):
            self._queued_s = seen.now_s
        if queue > now:
            now, why = queue, f"{backlog_s:.1f} s of prompts wait"
        return Need(now, max(fewest(relaxed_rate(seen)), now), why, busy)

    def _slack_s(self, seen: Observations) -> float:
        """How long a prompt may wait for a prefill worker."""
        return max(self.targets.ttft_s - seen.service_s.mean, 0.25 * self.targets.ttft_s)

    def _backlog_s(self, seen: Observations, queued_tokens: int) -> float:
        """Seconds that one worker would need for those prompts, and all that are at workers."""
        if seen.prefill_tokens_per_s <= 0:
            return 0.0
        tokens = queued_tokens + sum(w.queued_tokens for w in seen.of(Role.PREFILL, "ready"))
        return tokens / seen.prefill_tokens_per_s

    def _waits_s(self, seen: Observations, queued_tokens: int) -> float:
        """How long the newest prompt waits for a prefill worker."""
        return self._backlog_s(seen, queued_tokens) / max(len(seen.of(Role.PREFILL, "ready")), 1)

    def _for_queue(self, seen: Observations, busy: float) -> tuple[int, float]:
        """Workers that end the wait soon, when the newest request would wait beyond its target; and the backlog."""
        queued = 0 if self.is_decode_full(seen) else seen.queued_tokens
        backlog_s = self._backlog_s(seen, queued)
        if self._waits_s(seen, queued) <= self._slack_s(seen):
            return 0, backlog_s
        recover_s = max(RECOVER_S, 4 * self.targets.ttft_s)
        return math.ceil(busy + backlog_s / recover_s), backlog_s

    def _decode(self, seen: Observations) -> Need:
        present = seen.present()[Role.DECODE]
        demand, relaxed = decode_demand(seen), decode_demand(seen, relaxed_rate(seen))
        if demand is None or relaxed is None or seen.output_tokens.count < MIN_SAMPLES:
            return self._unknown(seen, Role.DECODE, present)

        def fewest(at: DecodeDemand) -> int:
            return fewest_workers(
                lambda n: decode_attainment(at, n, self.targets.tpot_s),
                self.targets.goal,
                limit=max(self.limits.decode.most, 1) + 1,
            )

        fits = min(demand.step.most_sequences(self.targets.tpot_s), demand.room_sequences)
        load = demand.rate_per_s * demand.output_tokens * demand.step.seconds(max(fits, 1.0))
        load /= max(fits, 1.0)
        now = fewest(demand)
        why = f"{fits:.0f} sequences fit a decode worker, {demand.rate_per_s:.2f} requests/s come"
        if self.is_decode_full(seen):
            more = math.ceil(seen.queued_requests / max(fits, 1.0))
            if present + more > now:
                now, why = present + min(more, max(present, 1)), "decode workers are full"
                self._full = (present + 1, seen.now_s + FULL_KEPT_S)
        return Need(now, max(fewest(relaxed), now), why, load)

    def _unknown(self, seen: Observations, role: Role, present: int) -> Need:
        """Too few samples: only a queue that is too old is believed, one worker at a time."""
        is_its_queue = self.is_decode_full(seen) == (role == Role.DECODE)
        if seen.oldest_wait_s > self.targets.ttft_s and is_its_queue:
            why = f"a request has waited {seen.oldest_wait_s:.1f} s"
            return Need(present + 1, present + 1, why)
        return Need(present, present, "too few requests have finished to judge")

    # ---- what reality taught

    def _learn(self, seen: Observations, role: Role, need: Need) -> None:
        """Count ticks in which a role missed its target although it has what the models ask for, and no
        queue of before explains it."""
        held, goal = seen.tpot, self.targets.goal
        if role == Role.PREFILL:
            held = seen.ttft
            goal = reachable_goal(goal, seen.service_s.share_within(self.targets.ttft_s))
        present = len(seen.of(role, "ready"))
        misses = held.count >= MIN_SAMPLES and held.share < goal - MISS_MARGIN
        blamed = misses and seen.now_s - self._queued_s >= self.echo_s
        if not blamed or need.load is None or need.now > present or not present:
            self._misses[role] = 0
            return
        self._misses[role] += 1
        if self._misses[role] >= MISS_TICKS:
            self._misses[role] = 0
            self._remember(role, need.load / present, seen.now_s)

    def _remember(self, role: Role, load_per_worker: float, now_s: float) -> None:
        known = self._lessons.get(role)
        hold_s = min(2 * known.hold_s, MAX_LEARNED_S) if known else LEARNED_S
        self._lessons[role] = _Lesson(load_per_worker, now_s + hold_s, hold_s)

    def _with_lesson(self, seen: Observations, role: Role, need: Need) -> Need:
        lesson = self._lessons.get(role)
        if lesson is None or need.load is None or seen.now_s >= lesson.until_s:
            return need
        if lesson.load_per_worker <= 0:
            return need
        least = math.floor(need.load / lesson.load_per_worker + 1e-9) + 1
        relaxed = math.floor(LESSON_SLACK * need.load / lesson.load_per_worker + 1e-9) + 1
        relaxed = max(need.relaxed, relaxed)
        if least <= need.now:
            return Need(need.now, relaxed, need.why, need.load)
        why = f"{role} missed its target at this load with {least - 1}"
        return Need(least, relaxed, why, need.load)

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
from coordinator.planning.lessons import (
    CHANCE,
    MIN_SAMPLES,
    Lessons,
    binomial_tail,
    is_beyond_chance,
)
from coordinator.planning.sketch import Distribution
from protocol.roles import COMPUTING, Role

if TYPE_CHECKING:
    from coordinator.planning.observations import Limits, Observations, Targets

RELAXED = 1.1
"""Workers are removed only if the rest could carry this much of the load."""
MIN_ARRIVALS = 8
"""Prompts that came before anything is concluded from their lengths alone."""
FORGIVEN = 0.1
"""A window's highest needs that do not keep workers from being removed: a spike is over when it is over."""
BURST_SIGMAS = 5.0
"""The short window's rate counts when it is above the long one's by more than chance would have it."""
FULL_SHARE = 0.9
FULL_KEPT_S = 600.0
"""Workers that were full, or before which a queue grew, do not become fewer for so long."""
FULL_WAIT_SHARE = 0.25
"""Of the wait that the goal allows, before full decode workers are a reason for more of them."""
STARVED_SHARE = 0.05
"""A prefill worker that has no more to do than this share of that wait is kept from its work by full decode workers."""
WAIT_MARGIN, WAIT_STEP, LEAST_WAIT, MOST_WAIT = 0.01, 1.02, 0.2, 2.0
LEAST_SHARE = 0.5
"""Relief by decode workers is not counted on for more than the rest."""
HELD_S = 60.0
"""How far back requests are looked at, to see whether targets are held."""
RECOVER_S = 30.0
"""A queue should be gone after so long, or after four TTFTs when that is more."""
QUEUE_STEP = 3
"""A queue asks for one worker more for each so many that are there, and looks again when they have come: it is news of
a minute, and whom it asks for stays for longer."""
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
    """Requests a second: the long window's, or the short one's when it rose beyond chance; no less than what is foreseen."""
    return max(_rate_seen(seen), seen.rate_ahead or 0.0)


def _rate_seen(seen: Observations) -> float:
    long = seen.rate_long
    if seen.short_count <= 0 or seen.rate_short <= long:
        return long
    window_s = seen.short_count / seen.rate_short
    spread = math.sqrt(max(long * window_s, 1.0) * max(seen.arrival_scv, 1.0)) / window_s
    return seen.rate_short if seen.rate_short > long + BURST_SIGMAS * spread else long


def relaxed_rate(seen: Observations) -> float:
    """The rate by which workers are removed: a dip of two minutes is not believed, unless it was foreseen."""
    slow = seen.rate_slow if seen.rate_ahead is None else 0.0
    return RELAXED * max(rate_now(seen), slow)


def service_of(seen: Observations) -> Distribution:
    """Seconds of a worker for one prompt: as measured, or at first from the prompts' lengths; empty when neither is
    known well enough."""
    if seen.service_s.count >= MIN_SAMPLES:
        return seen.service_s
    if seen.expected_service_s.count >= MIN_ARRIVALS:
        return seen.expected_service_s
    return Distribution()


def prefill_demand(
    seen: Observations, rate: float | None = None, wait_scale: float = 1.0
) -> PrefillDemand:
    """What comes to the prefill workers: decode workers that relieve them go on doing so. From a few requests, no more
    is believed than is likely."""
    rate = rate_now(seen) if rate is None else rate
    rate *= max(seen.prefill_share, LEAST_SHARE)
    if seen.service_s.count < MIN_SAMPLES:
        rate *= 1.0 - 1.0 / math.sqrt(max(seen.expected_service_s.count, 1.0))
    return PrefillDemand(rate, service_of(seen), seen.arrival_scv, wait_scale)


def decode_demand(seen: Observations, rate: float | None = None) -> DecodeDemand | None:
    """What comes to the decode workers; None until a step was measured."""
    if seen.step is None:
        return None
    tokens = max(seen.output_tokens.mean - 1.0, 0.0)
    rate = rate_now(seen) if rate is None else rate
    prefilling = rate * max(seen.placed_s, service_of(seen).mean)
    return DecodeDemand(rate, tokens, seen.step, seen.room_sequences, prefilling)


@dataclass(slots=True)
class Needs:
    """Told of every observation; a role's history begins with the first one that the models believe."""

    targets: Targets
    limits: Limits
    kept_s: float
    last: dict[Role, Need] = field(default_factory=dict)
    _history: dict[Role, deque[tuple[float, int]]] = field(
        default_factory=lambda: {role: deque() for role in COMPUTING}
    )
    wait_scale: float = 1.0
    beyond_reach: str | None = None
    _full: tuple[int, float] = (0, float("-inf"))
    _too_few: tuple[int, float] = (0, float("-inf"))
    _since_s: dict[str, float] = field(default_factory=dict)
    _queued_s: float = float("-inf")
    _lessons: Lessons = field(default_factory=Lessons)

    def keep_within(self, limits: Limits) -> None:
        """Other limits from the next look on; what was learned stays."""
        self.limits = limits

    def update(
        self, seen: Observations, *, is_settled: bool, is_comparable: bool = False
    ) -> dict[Role, Need]:
        """Needs as of now. `is_settled`: what is seen is the work of the workers that are there;
        `is_comparable`: for the most part."""
        if is_comparable:
            self._compare_waits(seen)
        for role in COMPUTING:
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
            self.wait_scale = min(self.wait_scale * WAIT_STEP**3, MOST_WAIT)

    @property
    def echo_s(self) -> float:
        """For so long, requests are judged that met the state of before."""
        return HELD_S + 2 * self.targets.ttft_s

    def is_decode_full(self, seen: Observations) -> bool:
        """Whether requests wait because every decode worker has as many as it can take.

        Promised blocks alone do not tell: while every prefill worker has prompts to compute, it is for these that
        the blocks are promised, and more decode workers would only let more prompts be promised some."""
        decoders = seen.of(Role.DECODE, "ready")
        if not decoders or not self._waits_beyond_goal(seen):
            return False
        if all(w.running >= FULL_SHARE * seen.room_sequences for w in decoders):
            return True
        is_promised = all(w.kv_share >= FULL_SHARE for w in decoders)
        return is_promised and self._waits_s(seen, 0) <= STARVED_SHARE * self._slack_s(seen)

    def _waits_beyond_goal(self, seen: Observations) -> bool:
        """Whether what waits at the coordinator is old, or much, for this goal."""
        patience = self._patience()
        if seen.queued_requests > patience * seen.room_sequences:
            return True
        longest_s = FULL_WAIT_SHARE * patience * self._slack_s(seen)
        return seen.queued_requests > 0 and seen.oldest_wait_s >= longest_s

    def floor(self, role: Role, now_s: float, window_s: float) -> int | None:
        """What covered the relaxed need for all but FORGIVEN of the window; None when the window is not known
        in full."""
        history = self._history[role]
        recent = sorted(need for at_s, need in history if at_s >= now_s - window_s)
        if not recent or now_s - self._since_s[role] < window_s:
            return None
        floor = max(recent[math.ceil((1.0 - FORGIVEN) * len(recent)) - 1], history[-1][1])
        count, until_s = self._full if role is Role.DECODE else self._too_few
        return max(floor, count) if now_s < until_s else floor

    # ---- the models

    def _prefill(self, seen: Observations) -> Need:
        present = seen.present()[Role.PREFILL]
        if not service_of(seen).values:
            return self._unknown(seen, Role.PREFILL, present)
        goal = reachable_goal(self.targets.goal, self._possible(seen))
        self.beyond_reach = self._beyond_reach(seen, goal)

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
        if self.is_decode_full(seen):
            self._queued_s = seen.now_s
        if queue > now:
            now, why = queue, f"{backlog_s:.1f} s of prompts wait"
            self._too_few = (len(seen.of(Role.PREFILL, "ready")) + 1, seen.now_s + FULL_KEPT_S)
        return Need(now, max(fewest(relaxed_rate(seen)), now), why, busy)

    def _slack_s(self, seen: Observations) -> float:
        """How long a prompt may wait for a prefill worker and still be in time."""
        return max(self.targets.ttft_s - service_of(seen).mean, 0.25 * self.targets.ttft_s)

    def _patience(self) -> float:
        """How many times as long the newest prompt may wait before the queue alone asks for workers; 1 at a goal of 0.9.
        A lower goal lets more prompts wait too long, and waits have an exponential tail."""
        most_missed = min(max(1.0 - self.targets.goal, 1e-3), 0.75)
        return math.log(0.1) / math.log(most_missed)

    def _backlog_s(self, seen: Observations, queued_tokens: int) -> float:
        """Seconds that one worker would need for those prompts, and all that are at workers."""
        if seen.prefill_tokens_per_s <= 0:
            return 0.0
        tokens = queued_tokens + sum(w.queued_tokens for w in seen.of(Role.PREFILL, "ready"))
        return tokens / seen.prefill_tokens_per_s

    def _waits_s(self, seen: Observations, queued_tokens: int) -> float:
        """How long the newest prompt waits for a prefill worker: the one with the least to do takes it."""
        ready = seen.of(Role.PREFILL, "ready")
        if not ready or seen.prefill_tokens_per_s <= 0:
            return self._backlog_s(seen, queued_tokens)
        tokens = queued_tokens / len(ready) + min(w.queued_tokens for w in ready)
        return tokens / seen.prefill_tokens_per_s

    def _for_queue(self, seen: Observations, busy: float) -> tuple[int, float]:
        """Workers that end the wait soon, when the newest request would wait beyond what the goal allows; and the
        backlog."""
        queued = 0 if self.is_decode_full(seen) else seen.queued_tokens
        if seen.refused_share > 1.0 - self.targets.goal:
            queued += seen.refused_tokens
        backlog_s, waits_s = self._backlog_s(seen, queued), self._waits_s(seen, queued)
        if waits_s > self._slack_s(seen):
            self._queued_s = seen.now_s
        patience = self._patience()
        if waits_s <= patience * self._slack_s(seen):
            return 0, backlog_s
        recover_s = max(RECOVER_S, 4 * self.targets.ttft_s) * max(patience, 1.0)
        ready = len(seen.of(Role.PREFILL, "ready"))
        busy = min(busy, ready)  # what is refused keeps nobody busy
        most = ready + max(math.ceil(ready / QUEUE_STEP), 1)
        return min(math.ceil(busy + backlog_s / recover_s), most), backlog_s

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
        if seen.oldest_wait_s > self.targets.ttft_s * self._patience() and is_its_queue:
            why = f"a request has waited {seen.oldest_wait_s:.1f} s"
            return Need(present + 1, present + 1, why)
        return Need(present, present, "too few requests have finished to judge")

    # ---- what reality taught

    def _learn(self, seen: Observations, role: Role, need: Need) -> None:
        """The role is to blame for misses beyond chance, if it has what the models ask for and no queue of before
        explains them."""
        held, allowed = seen.tpot, 1.0 - self.targets.goal
        if role == Role.PREFILL:
            possible = self._possible(seen)
            held, allowed = seen.ttft, possible - reachable_goal(self.targets.goal, possible)
        is_old = seen.now_s - self._queued_s < self.echo_s
        is_short = need.now > len(seen.of(role, "ready"))
        blamed = None if is_old or is_short or not is_beyond_chance(held, allowed) else held
        self._lessons.judge(seen, role, need.load, blamed)

    def _beyond_reach(self, seen: Observations, planned: float) -> str | None:
        """What to tell people when too many prompts are late on an idle worker, beyond chance."""
        late, count, goal = (
            1.0 - self._possible(seen),
            round(seen.service_s.count),
            self.targets.goal,
        )
        if count < MIN_SAMPLES or binomial_tail(count, 1.0 - goal, round(late * count)) >= CHANCE:
            return None
        return (
            f"goal:{goal:g} is beyond reach with any number of workers: {late:.1%} of the prompts take longer than "
            f"{self.targets.ttft_s * 1e3:.0f} ms on an idle one; the pools are sized for {planned:.1%}"
        )

    def _possible(self, seen: Observations) -> float:
        """Share of prompts that are in time on an idle worker."""
        return service_of(seen).share_within(self.targets.ttft_s)

    def _with_lesson(self, seen: Observations, role: Role, need: Need) -> Need:
        lesson = self._lessons.of(role, seen.now_s)
        if lesson is None or need.load is None or lesson.load_per_worker <= 0:
            return need
        least = math.floor(need.load / lesson.load_per_worker + 1e-9) + 1
        relaxed = math.floor(LESSON_SLACK * need.load / lesson.load_per_worker + 1e-9) + 1
        relaxed = max(need.relaxed, relaxed)
        if least <= need.now:
            return Need(need.now, relaxed, need.why, need.load)
        why = f"{role} missed its target at this load with {least - 1}"
        return Need(least, relaxed, why, need.load)

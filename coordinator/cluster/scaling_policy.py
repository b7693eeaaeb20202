"""Whether the pools follow the load, by which SLO and within which ranges; changed while it runs. Owns these settings.

    off ──── nobody asks the planner          on ──── its decisions are orders
    dry-run  its decisions are told, and nothing is done

What is not named in a change stays. A planner that is given another SLO begins to learn anew; other ranges it keeps to
from its next decision on.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from coordinator.cluster.holding import Holding
from coordinator.planning.observations import EMPTY_DECODE, IDLE_S, Limits, Range, Targets
from coordinator.planning.planner import Planner
from protocol.errors import InvalidRequest
from protocol.ids import MAX_WORKERS
from protocol.roles import COMPUTING, Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.cluster.autoscaler import Autoscaler
    from coordinator.cluster.service_api import AutoscaleMode, AutoscaleWish

log = logging.getLogger(__name__)


class ScalingPolicy:
    """`make` builds the autoscaler of a planner, `judge` tells who counts by which SLO. Without an SLO there is none."""

    def __init__(
        self,
        make: Callable[[Planner], Autoscaler],
        judge: Callable[[Targets], None],
        holding: Holding | None = None,
    ) -> None:
        self.autoscaler: Autoscaler | None = None
        self.mode: AutoscaleMode = "off"
        self.targets: Targets | None = None
        self.limits: Limits | None = None
        self._make, self._judge = make, judge
        self._holding = holding or Holding()

    def watch(self, targets: Targets) -> None:
        """Count by this SLO, whether the pools follow or not."""
        self.targets = targets
        self._judge(targets)

    def begin(self, targets: Targets, limits: Limits, mode: AutoscaleMode = "on") -> Autoscaler:
        """Let the planner size the pools from now on, or say how it would."""
        self.watch(targets)
        self.mode, self.limits = mode, limits
        if self.autoscaler is None:
            self.autoscaler = self._make(Planner(targets, limits))
        else:
            self.autoscaler.planner.follow(targets, limits)
        self.autoscaler.take_mode(dry_run=mode == "dry-run")
        self._tell_holding()
        return self.autoscaler

    def _tell_holding(self) -> None:
        """Requests wait for workers only where the planner would start some."""
        may_sleep = self.limits is not None and self.limits.may_sleep
        self._holding.allow(sleep=self.mode == "on" and may_sleep)

    def change(self, wish: AutoscaleWish) -> dict[str, Any]:
        """What is named is so from now on. InvalidRequest for what cannot be; then nothing is changed."""
        mode = wish.mode or self.mode
        targets = self._targets(wish)
        limits = self._limits(
            wish, must_be_whole=mode != "off" or bool(wish.prefill or wish.decode)
        )
        if targets is None and mode != "off":
            raise InvalidRequest("an SLO is needed: give ttft_ms and tpot_ms", "ttft_ms")
        if mode != "off" and targets is not None and limits is not None:
            self.begin(targets, limits, mode)
        else:
            if targets is not None:
                self.watch(targets)
            self.mode, self.limits = mode, limits
            self._tell_holding()
        log.info("autoscaling: %s", self.settings())
        return self.settings()

    def _targets(self, wish: AutoscaleWish) -> Targets | None:
        known = self.targets
        ttft_s = wish.ttft_ms / 1e3 if wish.ttft_ms else known and known.ttft_s
        tpot_s = wish.tpot_ms / 1e3 if wish.tpot_ms else known and known.tpot_s
        if not ttft_s or not tpot_s:
            return None
        return Targets(ttft_s, tpot_s, wish.goal or (known.goal if known else 0.9))

    def _limits(self, wish: AutoscaleWish, *, must_be_whole: bool) -> Limits | None:
        ranges: dict[Role, Range] = {}
        for role in COMPUTING:
            given = wish.prefill if role is Role.PREFILL else wish.decode
            if given is not None:
                ranges[role] = _range(role, given)
            elif self.limits is not None:
                ranges[role] = self.limits.of(role)
            elif must_be_whole:
                raise InvalidRequest(f"{role}: give its range, as [1, 4]", role)
        if len(ranges) < len(COMPUTING):
            return None
        most = min(MAX_WORKERS, sum(each.most for each in ranges.values()))
        budget = wish.total or (most if self.limits is None else min(self._budget(), most))
        if wish.prefill is not None or wish.decode is not None:
            budget = wish.total or most
        least = max(sum(each.least for each in ranges.values()), 1)
        if not least <= budget <= MAX_WORKERS:
            raise InvalidRequest(f"total: {budget} must be {least} to {MAX_WORKERS}", "total")
        if ranges[Role.PREFILL].least > 0 == ranges[Role.DECODE].least:
            raise InvalidRequest(f"decode: {EMPTY_DECODE}", "decode")
        idle_s = wish.idle_s or (IDLE_S if self.limits is None else self.limits.idle_s)
        return Limits(ranges[Role.PREFILL], ranges[Role.DECODE], budget, idle_s)

    def _budget(self) -> int:
        return self.limits.budget if self.limits is not None else MAX_WORKERS

    def tick(self) -> None:
        """Ask the planner when it is time."""
        if self.autoscaler is not None and self.mode != "off":
            self.autoscaler.tick()

    def settings(self) -> dict[str, Any]:
        """As `GET /cluster/autoscale` shows them."""
        targets, limits = self.targets, self.limits
        return {
            "mode": self.mode,
            "ttft_ms": targets and round(targets.ttft_s * 1e3, 3),
            "tpot_ms": targets and round(targets.tpot_s * 1e3, 3),
            "goal": targets and targets.goal,
            "prefill": limits and [limits.prefill.least, limits.prefill.most],
            "decode": limits and [limits.decode.least, limits.decode.most],
            "total": limits and limits.budget,
            "idle_s": limits and limits.idle_s,
        }

    def view(self) -> dict[str, Any]:
        """`autoscaler` of `GET /cluster`."""
        if self.autoscaler is None or self.mode == "off":
            return {"enabled": False, "settings": self.settings()}
        return {**self.autoscaler.view(), "settings": self.settings()}


def _range(role: Role, given: tuple[int, int]) -> Range:
    least, most = given
    if not (0 <= least <= most <= MAX_WORKERS and most):
        raise InvalidRequest(
            f"{role}: [{least}, {most}] is no range: give 0 to {MAX_WORKERS}, the lower first", role
        )
    return Range(least, most)

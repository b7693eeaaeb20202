"""How much a key has used of what it may. Owns budgets, and the reservations in them and in windows; pure.

    reserve: prompt + max_tokens ──► … answer … ──► settle: what it was          refused: nothing is reserved
                                                └─► cancel: it never ran

An entry's time in a window is its admission's. Instants are of a monotonic clock, but for budgets, whose periods begin at
wall times; a period that has begun never becomes an earlier one again, whatever the clock does.

Who is refused is told when they fit after all who were refused before and have not come back yet: not all at one moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.planning.throughput import FinishRate
from coordinator.planning.windows import WINDOW_S, Entry, Window
from protocol.errors import LimitReached

if TYPE_CHECKING:
    from coordinator.accounts.terms import KeyRecord

SPENT_CODE = "insufficient_quota"


class Budget:
    """At most `limit` in each period; without a period, ever."""

    def __init__(self, limit: int, period_s: float | None, begin_at: float) -> None:
        self.limit = limit
        self._period_s = period_s
        self._begin_at = begin_at
        self.spent = 0
        self.reserved = 0

    def begin_of(self, wall_s: float) -> float:
        """When the period of that instant began, never before the one that is known."""
        if self._period_s is not None and wall_s >= self._begin_at + self._period_s:
            self._begin_at += (wall_s - self._begin_at) // self._period_s * self._period_s
            self.spent = 0
        return self._begin_at

    def fits(self, amount: int, wall_s: float) -> bool:
        """Whether so much more is left, all reservations kept."""
        self.begin_of(wall_s)
        return self.spent + self.reserved + amount <= self.limit

    def is_spent(self, wall_s: float) -> bool:
        """Whether no end of what runs now leaves anything."""
        self.begin_of(wall_s)
        return self.spent >= self.limit

    def reset_s(self, wall_s: float) -> float:
        """Until the next period; infinite where there is none."""
        if self._period_s is None:
            return float("inf")
        return self.begin_of(wall_s) + self._period_s - wall_s


@dataclass(slots=True)
class Reservation:
    """What one live request holds."""

    tokens: int
    cost_nano: int
    request_entry: Entry | None = None
    token_entry: Entry | None = None


class KeyMeter:
    """One key's account. `settle` or `cancel` follows every `reserve`, once."""

    def __init__(self, record: KeyRecord) -> None:
        terms = record.terms
        self._terms = terms
        per_minute, tokens = terms.requests_per_minute, terms.tokens_per_minute
        self.requests = None if per_minute is None else Window(per_minute)
        self.tokens = None if tokens is None else Window(tokens)
        period_s, created = terms.budget_period_s, record.created_at
        nano, most = terms.budget_nano, terms.budget_tokens
        self.money = None if nano is None else Budget(nano, period_s, created)
        self.budget_tokens = None if most is None else Budget(most, period_s, created)
        self.running = 0
        self._finish_rate = FinishRate()

    @property
    def counts_tokens(self) -> bool:
        """Whether anything but requests is limited."""
        return not (self.tokens is None and self.money is None and self.budget_tokens is None)

    def restore(self, age_s: float, tokens: int, now_s: float) -> None:
        """A request that was admitted `age_s` ago, before this process began; told in the order they were."""
        at_s = now_s - min(max(age_s, 0.0), WINDOW_S)
        if self.requests is not None:
            self.requests.add(1, at_s)
        if self.tokens is not None:
            self.tokens.add(tokens, at_s)

    def restore_spent(self, cost_nano: int, tokens: int) -> None:
        """What this period has cost before this process began."""
        if self.money is not None:
            self.money.spent += cost_nano
        if self.budget_tokens is not None:
            self.budget_tokens.spent += tokens

    def reserve(self, tokens: int, cost_nano: int, now_s: float, wall_s: float) -> Reservation:
        """Hold what a request may take at most; raises LimitReached, and then nothing is held."""
        self.check(tokens, cost_nano, now_s, wall_s)
        held = Reservation(tokens, cost_nano)
        held.request_entry = self.requests.add(1, now_s) if self.requests is not None else None
        held.token_entry = self.tokens.add(tokens, now_s) if self.tokens is not None else None
        self.running += 1
        self._finish_rate.begun(now_s)
        self._hold(cost_nano, tokens)
        return held

    def check(self, tokens: int, cost_nano: int, now_s: float, wall_s: float) -> None:
        """Raise LimitReached where a request of that much would be refused now."""
        self._check_budget(self.money, cost_nano, now_s, wall_s)
        self._check_budget(self.budget_tokens, tokens, now_s, wall_s)
        most = self._terms.parallel_requests
        if most is not None and self.running >= most:
            told = f"this API key may have {most} requests at once, and has them"
            raise LimitReached(told, self._finish_rate.promise(now_s), self.headers(now_s))
        self._check_window(self.requests, 1, "requests", now_s)
        self._check_window(self.tokens, tokens, "tokens", now_s)

    def settle(
        self,
        held: Reservation,
        computed: int,
        booked: int,
        cost_nano: int,
        now_s: float,
        wall_s: float,
    ) -> None:
        """The request is over: so many tokens were computed for it, so many are booked, at that cost."""
        self._finish_rate.finished(now_s)
        self._release(held, now_s)
        if self.tokens is not None and held.token_entry is not None:
            self.tokens.change(held.token_entry, computed)
        for budget, amount in ((self.money, cost_nano), (self.budget_tokens, booked)):
            if budget is not None:
                budget.begin_of(wall_s)
                budget.spent += amount

    def booked_at(self, wall_s: float) -> float:
        """When something is booked: never before the period whose budget it takes, whatever the clock does."""
        budgets = [budget for budget in (self.money, self.budget_tokens) if budget is not None]
        return max(wall_s, *(budget.begin_of(wall_s) for budget in budgets)) if budgets else wall_s

    def cancel(self, held: Reservation, now_s: float) -> None:
        """The request was refused after all."""
        self._release(held, now_s)
        for window, entry in (
            (self.requests, held.request_entry),
            (self.tokens, held.token_entry),
        ):
            if window is not None and entry is not None:
                window.remove(entry)

    def headers(self, now_s: float) -> dict[str, str]:
        """What OpenAI's clients read of limits."""
        told: dict[str, str] = {}
        for name, window in (("requests", self.requests), ("tokens", self.tokens)):
            if window is not None:
                left = max(window.limit - window.used(now_s), 0)
                told[f"x-ratelimit-limit-{name}"] = str(window.limit)
                told[f"x-ratelimit-remaining-{name}"] = str(left)
                told[f"x-ratelimit-reset-{name}"] = spell_duration(window.reset_s(now_s))
        return told

    def _hold(self, cost_nano: int, tokens: int) -> None:
        if self.money is not None:
            self.money.reserved += cost_nano
        if self.budget_tokens is not None:
            self.budget_tokens.reserved += tokens

    def _release(self, held: Reservation, now_s: float) -> None:
        self.running -= 1
        if not self.running:
            self._finish_rate.idle(now_s)
        self._hold(-held.cost_nano, -held.tokens)

    def _check_budget(
        self, budget: Budget | None, amount: int, now_s: float, wall_s: float
    ) -> None:
        if budget is None or budget.fits(amount, wall_s):
            return
        headers = self.headers(now_s)
        if not budget.is_spent(wall_s) and budget.spent + amount <= budget.limit:
            told = "this API key's running requests hold the rest of its budget"
            raise LimitReached(told, self._finish_rate.promise(now_s), headers)
        if budget.is_spent(wall_s):
            told = "this API key's budget is spent"
        else:
            told = "this API key's budget has not enough left for this request; a smaller max_tokens may fit"
        reset_s = budget.reset_s(wall_s)
        raise LimitReached(told, reset_s, headers, may_retry=False, code=SPENT_CODE)

    def _check_window(self, window: Window | None, amount: int, name: str, now_s: float) -> None:
        if window is None or window.wait_s(amount, now_s) == 0.0:
            return
        wait_s = window.promise_s(amount, now_s)
        asked = f" {amount} of" if name == "tokens" else ""
        told = f"this API key may use{asked} {window.limit} {name} a minute, and used {window.used(now_s)}"
        if wait_s == float("inf"):
            told = (
                f"this request needs {amount} {name}; this API key may use {window.limit} a minute"
            )
        raise LimitReached(told, wait_s, self.headers(now_s), may_retry=wait_s != float("inf"))


def spell_duration(seconds: float) -> str:
    """As OpenAI writes it: 6m0s, 1.5s, 20ms, 0s."""
    ms = max(round(seconds * 1000), 0)
    if ms < 1000:
        return f"{ms}ms" if ms else "0s"
    minutes, rest = divmod(ms, 60_000)
    spelled = f"{rest / 1000:g}s"
    return f"{minutes}m{spelled}" if minutes else spelled

"""What a prompt costs a worker, in seconds, by its length. Owns the curve, learned from the workers' own times; pure.

Every token costs the same in the products, and in attention as much as there are tokens before it:

    seconds = per_token · n + per_pair · (end² - begin²) / 2        n = end - begin tokens computed, `begin` cached

Two weights by least squares over what finished, older prompts fading; neither is below zero. A token of a prompt of
100,000 costs many times one of a short prompt, so a sum of tokens says little about how long a queue takes.
"""

from __future__ import annotations

from dataclasses import dataclass

KEPT = 0.99
"""After so many prompts as 1 / (1 - KEPT), a prompt's weight is 1/e."""
MIN_PROMPTS = 8
PRIOR_TOKEN_S = 1e-3
"""What a prompt token takes while nothing is known."""


@dataclass(frozen=True, slots=True)
class PromptCost:
    """Seconds of a worker for tokens, and for pairs of a token and one before it."""

    per_token_s: float
    per_pair_s: float = 0.0

    def seconds(self, end: int, begin: int = 0) -> float:
        """To compute the tokens from `begin` to `end` of a prompt."""
        begin = min(begin, end)
        return self.per_token_s * (end - begin) + self.per_pair_s * _pairs(end, begin)


def _pairs(end: int, begin: int) -> float:
    return (end * end - begin * begin) / 2


@dataclass(frozen=True, slots=True)
class PromptWork:
    """A prompt's cost as a number of tokens of the mean prompt, which is what queues are counted in; `token_s` is what
    such a token takes, None as long as that is unknown."""

    cost: PromptCost = PromptCost(1.0)
    token_s: float | None = None

    def tokens(self, end: int, begin: int = 0) -> int:
        """The work of the tokens from `begin` to `end`; a token is a token while nothing is known."""
        work = self.cost.seconds(end, begin) / (self.token_s or 1.0)
        return max(round(work), int(begin < end))


@dataclass(slots=True)
class PromptCostFit:
    """Told of every prompt that was computed; `cost` is None before there were enough."""

    count: int = 0
    nn: float = 0.0
    np: float = 0.0
    pp: float = 0.0
    ns: float = 0.0
    ps: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0

    def add(self, end: int, begin: int, seconds: float) -> None:
        """The tokens from `begin` to `end` took `seconds`. Each prompt counts by its relative error: otherwise the
        longest would decide alone."""
        if end <= begin or seconds <= 0:
            return
        self.count += 1
        self.tokens = KEPT * self.tokens + end - begin
        self.seconds = KEPT * self.seconds + seconds
        tokens, pairs = (end - begin) / seconds, _pairs(end, begin) / seconds
        self.nn = KEPT * self.nn + tokens * tokens
        self.np = KEPT * self.np + tokens * pairs
        self.pp = KEPT * self.pp + pairs * pairs
        self.ns = KEPT * self.ns + tokens
        self.ps = KEPT * self.ps + pairs

    def work(self) -> PromptWork:
        """How queues are counted as of now."""
        cost = self.cost()
        return PromptWork() if cost is None else PromptWork(cost, self.seconds / self.tokens)

    def cost(self) -> PromptCost | None:
        """The curve as of now."""
        if self.count < MIN_PROMPTS:
            return None
        spread = self.nn * self.pp - self.np * self.np
        if spread <= 1e-9 * self.nn * self.pp:  # all prompts are alike: no telling, and no need to
            return PromptCost(self.ns / self.nn)
        per_token = (self.ns * self.pp - self.ps * self.np) / spread
        per_pair = (self.ps * self.nn - self.ns * self.np) / spread
        if per_pair < 0:
            return PromptCost(self.ns / self.nn)
        if per_token < 0:
            return PromptCost(0.0, self.ps / self.pp)
        return PromptCost(per_token, per_pair)

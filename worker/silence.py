"""How long a process goes on that nobody speaks to. Pure: told of time.

Processes that no parent holds (on the nodes of a Ray cluster) end by this rule, so that nothing is left behind.
"""

from __future__ import annotations

FIRST_WORD_S = 300.0
"""Before the first word: the other may have to prepare a model."""


class SilenceLimit:
    """`limit_s` of silence are enough; None: never."""

    def __init__(self, limit_s: float | None, now_s: float, first_s: float = FIRST_WORD_S) -> None:
        self.limit_s = limit_s
        self._until_s = now_s + max(first_s, limit_s or 0.0)

    def heard(self, now_s: float) -> None:
        """Somebody spoke."""
        self._until_s = now_s + (self.limit_s or 0.0)

    def is_over(self, now_s: float) -> bool:
        """Whether to end now."""
        return self.limit_s is not None and now_s > self._until_s

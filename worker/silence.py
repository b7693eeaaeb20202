"""How long a process goes on that nobody speaks to. Pure: told of time.

Only silence that was listened to counts: `is_over` is asked again and again, and a step or a pause between two of its
questions is no more than LONGEST_LOOK_S of the other's silence.

Processes that no parent holds (on the nodes of a Ray cluster) end by this rule, so that nothing is left behind.
"""

from __future__ import annotations

FIRST_WORD_S = 300.0
"""Before the first word: the other may have to prepare a model."""
LONGEST_LOOK_S = 1.5
"""Between two questions at most so much silence is counted; all who ask do so at least once a second."""


class SilenceLimit:
    """`limit_s` of silence are enough; None: never."""

    def __init__(self, limit_s: float | None, now_s: float, first_s: float = FIRST_WORD_S) -> None:
        self.limit_s = limit_s
        self._left_s = max(first_s, limit_s or 0.0)
        self._looked_s = now_s

    def heard(self, now_s: float) -> None:
        """Somebody spoke."""
        self._left_s = self.limit_s or 0.0
        self._looked_s = now_s

    def is_over(self, now_s: float) -> bool:
        """Whether to end now."""
        self._left_s -= min(now_s - self._looked_s, LONGEST_LOOK_S)
        self._looked_s = now_s
        return self.limit_s is not None and self._left_s < 0

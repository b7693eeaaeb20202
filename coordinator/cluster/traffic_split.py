"""Which revision of a model answers a request. Owns the weights, and who was sent where; pure, told of who is ready.

    seen before, and its revision serves ──► the same again
    new ──► by the hash of its key, in proportion to the weights ──► that one, unless it is LEAD requests ahead of its share:
                                                                     then the one that is furthest behind

The hash is weighted rendezvous hashing: a coordinator that starts again sends conversations where they were, and other weights
move no more of them than they must. By itself it keeps shares only as well as chance does, which is why it may be overruled.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

MAX_REMEMBERED = 100_000
"""Conversations; the one that was longest silent is forgotten first."""
LEAD = 8.0
"""Requests that a revision may be ahead of its share before new conversations go elsewhere."""
MOST_CREDIT = 8 * LEAD
"""What a revision is behind or ahead at most: what long conversations did is not made good for ever."""
_DIGEST_BYTES = 8


@dataclass(frozen=True, slots=True)
class Affinity:
    """What says that two requests belong together; no `key` where nothing does. `is_continued`: it was answered before,
    whether anybody remembers it or not."""

    key: str | None = None
    is_continued: bool = False


class TrafficSplit:
    """Invariant: of the requests since weights or readiness changed, no revision that new conversations go to has had more than
    LEAD and one more than its share, unless conversations that are under way made it so."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = dict(weights)
        self._credits: dict[str, float] = {}
        self._remembered: OrderedDict[bytes, str] = OrderedDict()

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Other weights from now on; conversations whose revision has none move."""
        self.weights = dict(weights)
        self._credits = {}

    def choose(self, asked: Affinity, ready: Collection[str]) -> str:
        """The revision for one request. Where none that has a weight is ready, as if all were: they hold or refuse it."""
        weighted = [name for name, weight in self.weights.items() if weight > 0]
        able = [name for name in weighted if name in ready] or weighted
        if self._credits.keys() != set(able):
            self._credits = dict.fromkeys(able, 0.0)
        chosen = self._chosen(asked, able)
        self._count(chosen, able)
        return chosen

    def _chosen(self, asked: Affinity, able: list[str]) -> str:
        if asked.key is None:
            return self._furthest_behind(able)
        digest = blake2b(asked.key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        known = self._remembered.get(digest)
        if known is not None:
            self._remembered.move_to_end(digest)
            if known in able:
                return known
        chosen = min(able, key=lambda name: self._lot(digest, name))
        is_new = known is None and not asked.is_continued
        if is_new and self._credits[chosen] <= -LEAD:
            chosen = self._furthest_behind(able)
        if known is None or not self.weights.get(
            known
        ):  # who only waits for its revision goes back to it
            self._remember(digest, chosen)
        return chosen

    def _furthest_behind(self, able: list[str]) -> str:
        total = sum(self.weights[name] for name in able)
        return max(able, key=lambda name: self._credits[name] + self.weights[name] / total)

    def _lot(self, digest: bytes, name: str) -> float:
        """The lowest wins: exponentially distributed with the weight as its rate."""
        drawn = blake2b(digest + name.encode(), digest_size=_DIGEST_BYTES).digest()
        uniform = (int.from_bytes(drawn, "big") + 0.5) / 2.0 ** (8 * _DIGEST_BYTES)
        return -math.log(uniform) / self.weights[name]

    def _remember(self, digest: bytes, name: str) -> None:
        self._remembered[digest] = name
        self._remembered.move_to_end(digest)
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)

    def _count(self, chosen: str, able: list[str]) -> None:
        total = sum(self.weights[name] for name in able)
        for name in able:
            earned = self.weights[name] / total - (name == chosen)
            credit = self._credits[name] + earned
            self._credits[name] = max(-MOST_CREDIT, min(MOST_CREDIT, credit))

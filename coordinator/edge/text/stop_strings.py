"""Stop strings in a growing text. Owns what is held back because it may begin one; pure.

Text arrives in pieces of any size and a stop string may lie across them. The stop string that is
complete first wins, the longest of several, so where a text is cut does not depend on its pieces. Only a tail that is a
proper prefix of some stop string is held back, so a stream without such a tail is never late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class StopStrings:
    """Passes text through until a stop string is complete; then `matched` says which."""

    def __init__(self, stops: Sequence[str], *, include_match: bool = False) -> None:
        self._stops = tuple(stops)
        self._include_match = include_match
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Text that is certain not to be part of a stop string; nothing after a match."""
        if self.matched is not None or not text:
            return ""
        if not self._stops:
            return text
        return self._scan(self._held + text)

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _scan(self, text: str) -> str:
        found = [(text.find(stop) + len(stop), -len(stop)) for stop in self._stops if stop in text]
        if found:
            end, minus_length = min(found)
            self.matched, self._held = text[end + minus_length : end], ""
            return text[:end] if self._include_match else text[: end + minus_length]
        kept = max(longest_partial(text, stop) for stop in self._stops)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def longest_partial(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that ends `text`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

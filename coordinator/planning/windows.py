"""What was used in the last minute, and when there is room again. Owns windows of 60 s, and who was promised a place; pure.

A window is the last 60 s, not a minute of the clock: no two halves of two minutes hold twice the limit.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import chain

WINDOW_S = 60.0
MOST_PROMISED = 1024
"""Callers who are kept a place: for each the others' places are counted."""


@dataclass(slots=True)
class Entry:
    """One request's part of a window."""

    at_s: float
    amount: int
    is_in: bool = True


class Window:
    """At most `limit` in any 60 s."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: deque[Entry] = deque()
        self._used = 0
        self._promised: deque[Entry] = deque()

    def used(self, now_s: float) -> int:
        """In the last 60 s."""
        while self._entries and self._entries[0].at_s <= now_s - WINDOW_S:
            self._leave(self._entries.popleft())
        return self._used

    def wait_s(self, amount: int, now_s: float) -> float:
        """How long until `amount` more fits: 0 for at once, infinite for never."""
        excess = self.used(now_s) + amount - self.limit
        if excess <= 0:
            return 0.0
        for entry in self._entries:
            excess -= entry.amount if entry.is_in else 0
            if excess <= 0:
                return max(entry.at_s + WINDOW_S - now_s, 0.001)
        return float("inf")

    def promise_s(self, amount: int, now_s: float) -> float:
        """As `wait_s`, after all who were told when to come back and are not due yet; infinite for never. Beyond what fits
        into one window nobody is kept a place: who asks again and again would have them all."""
        if amount > self.limit:
            return float("inf")
        while self._promised and self._promised[0].at_s <= now_s:
            self._promised.popleft()
        promised = sum(entry.amount for entry in self._promised)
        excess = self.used(now_s) + promised + amount - self.limit
        due_s = now_s
        for entry in chain(self._entries, self._promised):
            if excess <= 0:
                break
            if entry.is_in:
                excess -= entry.amount
                due_s = max(due_s, entry.at_s + WINDOW_S)
        if promised + amount <= self.limit and len(self._promised) < MOST_PROMISED:
            self._promised.append(Entry(due_s, amount))
        return max(due_s - now_s, 0.001)

    def add(self, amount: int, at_s: float) -> Entry:
        """Take it; whether it fits was asked before."""
        entry = Entry(at_s, amount)
        self._entries.append(entry)
        self._used += amount
        return entry

    def change(self, entry: Entry, amount: int) -> None:
        """It was that much; one that has left the window is past."""
        if entry.is_in:
            self._used += amount - entry.amount
            entry.amount = amount

    def remove(self, entry: Entry) -> None:
        """It never was."""
        self.change(entry, 0)
        self._leave(entry)

    def reset_s(self, now_s: float) -> float:
        """When all of the limit is free again, if nothing more comes."""
        self.used(now_s)
        last = next((entry for entry in reversed(self._entries) if entry.is_in), None)
        return 0.0 if last is None else last.at_s + WINDOW_S - now_s

    def _leave(self, entry: Entry) -> None:
        if entry.is_in:
            entry.is_in = False
            self._used -= entry.amount

"""News of a tier that nobody asked for long enough to lose some: everything is told anew."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from engine.kv.prefix_cache import PrefixCache
from protocol.clock import ManualClock
from worker.cache_news import CacheNews


def test_forgotten_changes_of_the_tier_are_answered_with_the_whole_list() -> None:
    told: list[Any] = []
    lower = SimpleNamespace(keys=lambda: [b"k"], take_changes=lambda: ([], []))
    context = SimpleNamespace(clock=ManualClock(), incarnation="i")
    news = CacheNews(
        PrefixCache(),
        SimpleNamespace(tell=told.append),
        context,  # type: ignore[arg-type]
        lower,
    )
    news.tell_all()
    lower.take_changes = lambda: None
    context.clock.advance(1.0)
    news.tell_changes()
    assert [(message.is_anew, message.disk_stored) for message in told] == [(True, [b"k"])] * 2

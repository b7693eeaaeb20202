"""What a promise in seconds means."""

from __future__ import annotations

import pytest

from tests import patience
from tests.patience import in_time, slowness, until


def test_work_takes_at_least_its_usual_time() -> None:
    assert slowness() >= 1.0


def test_the_quickest_of_some_attempts_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "slowness", lambda: 1.0)
    taken = iter([9.0, 0.5])
    in_time(lambda: next(taken), 1.0)


def test_what_is_always_late_breaks_its_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "slowness", lambda: 2.0)
    with pytest.raises(AssertionError, match=r"allowed 2\.000 s"):
        in_time(lambda: 2.5, 1.0)


def test_what_never_happens_is_named() -> None:
    with pytest.raises(AssertionError, match="the flood did not happen"):
        until(lambda: False, "the flood", 0.01)

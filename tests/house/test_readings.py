"""A prepared model is never older than the reading of its source: another reading is another FORMAT_VERSION."""

from __future__ import annotations

import pytest

from engine.checkpoints import prepared, rope_fields
from tests.house import readings
from tests.house.readings import outcomes, remembered


@pytest.fixture(scope="module")
def now() -> dict[str, str]:
    return outcomes()


def test_what_is_read_otherwise_raises_the_format_version(now: dict[str, str]) -> None:
    before = remembered()
    told = "FORMAT_VERSION is new, or there are other cases: python -m tests.house.readings"
    assert before.keys() == now.keys(), told
    changed = {case for case, outcome in now.items() if before[case] != outcome}
    assert not changed, (
        "these are read otherwise: raise FORMAT_VERSION (engine.checkpoints.prepared)"
    )


def test_much_is_read_and_much_is_refused(now: dict[str, str]) -> None:
    refused = [outcome for outcome in now.values() if outcome == readings.REFUSED]
    assert len(refused) > 300
    assert len(now) - len(refused) > 800


def test_another_reading_is_seen(monkeypatch: pytest.MonkeyPatch, now: dict[str, str]) -> None:
    """Such as the one that had a null of `truncate` for true."""
    known = list(readings.cases())
    rotary = [(what, read) for what, read in known if '"rope_' in what and "yarn" in what]
    monkeypatch.setattr(readings, "cases", lambda: rotary)
    assert outcomes().items() <= now.items()
    monkeypatch.setattr(rope_fields, "_is_null", lambda rope, name: False)
    changed = outcomes()
    assert sum(outcome != now[case] for case, outcome in changed.items()) > 10


def test_the_record_of_a_version_is_not_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "outcomes", lambda: dict.fromkeys(remembered(), "other"))
    assert readings.remember() == 1
    monkeypatch.setattr(readings, "FORMAT_VERSION", prepared.FORMAT_VERSION + 1)
    assert remembered() == {}

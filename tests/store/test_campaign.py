"""A sample of the campaign's crashes and damages, and that it would notice."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from kvtransfer.store.records import BlockRecord
from tests.marks import deep
from tests.store import campaign

ROOT = Path(__file__).parents[2]


def tallies(folder: Path, *arguments: str) -> dict[str, Any]:
    """Of the campaign as a process of its own: it forks."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.store.campaign", "--folder", folder, *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("cases", "seed"), [("12", "1"), deep("120", "1000")])
def test_no_crash_and_no_damage_makes_a_wrong_byte(tmp_path: Path, cases: str, seed: str) -> None:
    asked = ("--kills", cases, "--power-cuts", cases, "--damages", cases, "--seed", seed)
    found = tallies(tmp_path, *asked)
    assert {name: tally["wrong"] for name, tally in found.items()} == {
        "kills": 0,
        "power_cuts": 0,
        "damages": 0,
    }
    assert all(tally["read"] > 0 for tally in found.values())


def test_the_campaign_notices_a_log_that_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(BlockRecord, "proves", lambda record, data: True)
    assert campaign.damages(20, 1).wrong > 0


def test_the_campaign_notices_a_log_that_says_too_early_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvtransfer.store.segments import Segments

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Segments, "_sync", lambda segments, places: None)
    tally = campaign.power_cuts(30, 1)
    assert tally.wrong == 0
    assert tally.found < tally.acknowledged

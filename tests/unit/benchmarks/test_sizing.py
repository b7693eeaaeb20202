"""`baton plan`: the search over shapes, and the verb."""

from __future__ import annotations

import json

import pytest

from benchmarks.cluster_sim.sizing import Point, Sizing
from deploy.cli import main

FLAGS = ["plan", "--requests", "150", "--rate", "1.5", "--input-len", "300", "--output-len", "20"]
SLO = ["--slo", "ttft:3000", "tpot:60"]


def hill(need_prefill: float, need_decode: float):
    """Each role attains in proportion, up to 1."""

    def measure(prefill: int, decode: int) -> Point:
        ttft, tpot = min(prefill / need_prefill, 1.0), min(decode / need_decode, 1.0)
        return Point(prefill, decode, min(ttft, tpot), ttft, tpot)

    return measure


@pytest.mark.parametrize(("prefill", "decode"), [(1, 1), (3, 1), (1, 5), (7, 4), (12, 12)])
def test_the_fewest_of_both_are_found(prefill, decode) -> None:
    best = Sizing(hill(prefill, decode), 1.0, 32).best()
    assert best is not None
    assert (best.prefill, best.decode) == (prefill, decode)


def test_every_shape_is_measured_once() -> None:
    seen: list[tuple[int, int]] = []
    slope = hill(5, 3)

    def measure(prefill: int, decode: int) -> Point:
        seen.append((prefill, decode))
        return slope(prefill, decode)

    sizing = Sizing(measure, 1.0, 32)
    sizing.best()
    assert len(seen) == len(set(seen)) == len(sizing.points)


def test_no_shape_is_larger_than_allowed() -> None:
    sizing = Sizing(hill(40, 1), 1.0, 16)
    assert sizing.best() is None
    assert max(point.workers for point in sizing.points) <= 16


def test_decode_that_relieves_prefill_is_traded() -> None:
    """Two prefill workers less for one decode worker more, where that attains the goal."""

    def measure(prefill: int, decode: int) -> Point:
        share = 1.0 if prefill + 2.5 * decode >= 8.5 else 0.5
        return Point(prefill, decode, share, share, 1.0)

    best = Sizing(measure, 1.0, 20).best()
    assert best is not None
    assert best.workers <= 5


def test_the_plan_is_the_same_each_time(capsys) -> None:
    plans = []
    for _ in range(2):
        assert main([*FLAGS, *SLO, "--json"]) == 0
        plans.append(capsys.readouterr().out)
    assert plans[0] == plans[1]
    assert json.loads(plans[0])["recommended"]["attained"] >= 0.9


def test_the_table_ends_with_the_command_to_serve(capsys, tmp_path) -> None:
    path = tmp_path / "plan.json"
    assert main([*FLAGS, *SLO, "--output", str(path)]) == 0
    plan = json.loads(path.read_text())
    shown = capsys.readouterr().out.splitlines()[-1]
    assert shown == f"Recommended: baton serve smollm2-135m --pd {plan['recommended']['pd']}"


def test_what_cannot_be_held_is_status_1(capsys) -> None:
    assert main([*FLAGS, "--slo", "ttft:1", "tpot:1", "--max-workers", "2"]) == 1
    assert "No shape" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--slo", "ttft:2000"], "--slo: needs tpot"),
        (["--slo", "ttft:2000", "tbt:5"], "--slo: 'tbt:5' is no target"),
        ([], "--slo"),
        ([*SLO, "--rate", "0"], "--rate: must be more than 0"),
        ([*SLO, "--max-workers", "1"], "--max-workers: must be at least 2"),
        ([*SLO, "--model", "other"], "was measured with 'smollm2-135m'"),
        ([*SLO, "--calibration", "/nowhere.json"], "--calibration: cannot read"),
        ([*SLO, "--trace", "/nowhere.jsonl"], "cannot read /nowhere.jsonl"),
        ([*SLO, "--prefill-speed", "0"], "--prefill-speed: must be more than 0"),
        ([*SLO, "--sloo", "1"], "unrecognized arguments: --sloo"),
    ],
)
def test_wrong_flags_are_named(flags, said, capsys) -> None:
    assert main(["plan", *flags]) == 2
    assert said in capsys.readouterr().err

"""`baton plan`: what it prints, and which flags it refuses."""

from __future__ import annotations

import json

import pytest

from deploy.cli import main

FLAGS = ["plan", "--requests", "150", "--rate", "1.5", "--input-len", "300", "--output-len", "20"]
SLO = ["--slo", "ttft:3000", "tpot:60"]


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
        ([*SLO, "--max-workers", "1"], "--max-workers: 1 is outside 2…"),
        ([*SLO, "--model", "other"], "was measured with 'smollm2-135m'"),
        ([*SLO, "--calibration", "/nowhere.json"], "--calibration: cannot read"),
        ([*SLO, "--trace", "/nowhere.jsonl"], "cannot read /nowhere.jsonl"),
        ([*SLO, "--rate", "nan"], "--rate: 'nan' is not a number"),
        ([*SLO, "--input-len", "0"], "--input-len: 0 is outside 1…"),
        ([*SLO, "--spread", "-1"], "--spread: must be 0 to 10"),
        ([*SLO, "--swing", "2"], "--swing: must be 0 to 1"),
        ([*SLO, "--output", "/nowhere/plan.json"], "--output: there is no folder /nowhere"),
        ([*SLO, "--prefill-speed", "0"], "--prefill-speed: must be more than 0"),
        ([*SLO, "--sloo", "1"], "unknown option --sloo; did you mean '--slo'?"),
    ],
)
def test_wrong_flags_are_named(flags, said, capsys) -> None:
    assert main(["plan", *flags]) == 2
    assert said in capsys.readouterr().err

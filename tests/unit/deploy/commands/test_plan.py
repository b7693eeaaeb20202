"""`baton plan`: what it prints, and which flags it refuses."""

from __future__ import annotations

import json
import re

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


def test_what_too_few_workers_cannot_hold_is_status_1(capsys) -> None:
    assert main([*FLAGS, "--rate", "30", *SLO, "--max-workers", "2"]) == 1
    told = capsys.readouterr()
    assert (
        "No shape within --max-workers holds the targets: the best that was tried, 1p1d" in told.out
    )
    assert "allow more workers with --max-workers" in told.out
    assert told.err == ""


@pytest.mark.parametrize(
    ("slo", "name"), [(["ttft:1", "tpot:60"], "ttft"), (["ttft:3000", "tpot:1"], "tpot")]
)
def test_a_target_out_of_reach_is_told_with_the_least_that_is_in_reach(slo, name, capsys) -> None:
    assert main([*FLAGS, "--slo", *slo, "--max-workers", "2"]) == 1
    told = re.search(
        rf"--slo: {name}:1 is out of reach .* write {name}:(\d+) or more", capsys.readouterr().out
    )
    assert told is not None
    assert 1 < int(told[1]) < 3000


def test_why_nothing_was_found_stands_beside_the_json(capsys) -> None:
    assert main([*FLAGS, "--slo", "ttft:1", "tpot:60", "--max-workers", "2", "--json"]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["reason"] in told.err


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
        ([*SLO, "--input-len", "2000000000"], "--input-len: 2000000000 is outside 1…1048576"),
        ([*SLO, "--requests", "2000000000"], "--requests: 2000000000 is outside 1…1000000"),
        ([*SLO, "--rate", "1e-30"], "give a higher --rate"),
        ([*SLO, "--spread", "4", "--input-len", "1000000"], "give a smaller --input-len"),
        ([*SLO, "--max-workers", "2000000000"], "--max-workers: 2000000000 is outside 2…256"),
        ([*SLO, "goal:1.0"], "less than 1, as goal:0.95"),
        ([*SLO, "goal:0"], "more than 0 and less than 1"),
        ([*SLO, "goal:nan"], "more than 0 and less than 1"),
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


LINE = '{"timestamp": 5, "input_length": 9, "output_length": 2}\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no requests; write one JSON object a line"),
        ("timestamp,input_length\n", "line 1 is no line of a trace"),
        ('{"timestamp": 0, "input_length": 5}\n', "`output_length`"),
        (LINE.replace("9", "-9"), "$.input_length"),
        (LINE.replace("9", "900000000000"), "$.input_length"),
        (LINE.replace("9", "2000000"), "give a smaller --length-scale"),
        (LINE + LINE.replace("5", "4"), "line 2 is earlier than the one before; sort"),
        (LINE + LINE.replace("5", "1e300"), "give a higher --rate, a smaller --time-scale"),
    ],
)
def test_a_trace_that_cannot_be_used_is_told_in_one_sentence(text, said, tmp_path, capsys) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    assert main(["plan", *SLO, "--trace", str(path)]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


ROWS = {"prefill": [{"prompt_tokens": n, "ms": n} for n in (128, 512)]}
STEPS = {"decode": [{"batch": n, "context_tokens": 9, "step_ms": n} for n in (1, 2, 4)]}


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ([], "is no JSON object"),
        ({}, "no list 'prefill'"),
        ({**ROWS, "decode": "abc"}, "no list 'decode'"),
        ({**STEPS, "prefill": [1, 2]}, "no list 'prefill'"),
        ({**STEPS, "prefill": [{"prompt_tokens": 1, "ms": 0}] * 2}, "'ms' in 'prefill' must be"),
        (
            {**STEPS, "prefill": [{"prompt_tokens": "a", "ms": 1}] * 2},
            "'prompt_tokens' in 'prefill'",
        ),
        ({**STEPS, "prefill": [{"prompt_tokens": 1, "ms": float("nan")}] * 2}, "'ms' in 'prefill'"),
        ({**STEPS, "prefill": ROWS["prefill"][:1]}, "needs two prompt lengths"),
    ],
)
def test_a_calibration_that_cannot_be_used_is_told(report, said, tmp_path, capsys) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"model": "smollm2-135m", **report} if report != [] else []))
    assert main(["plan", *SLO, "--calibration", str(path)]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "`baton bench engine MODEL --output FILE`" in told

"""`baton bench cluster`: its picture, and what it refuses before anything is simulated."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest

from benchmarks.cluster_sim.chart import write_chart
from deploy.cli import main

FLAGS = ["bench", "cluster", "--requests", "40", "--rate", "1", "--input-len", "300"]
FLAGS += ["--output-len", "10", "--slo", "ttft:5000", "tpot:100", "--fixed", "1p1d"]
ROW = {"policy": "planned <1>", "attained": 0.91, "worker_hours": 1.5, "virtual_s": 600.0}
LOAD = [(0.0, 1.0), (200.0, 3.0), (400.0, 0.0)]


def drawn(tmp_path, *rows) -> str:
    path = tmp_path / "chart.svg"
    write_chart(path, "Workers & time", list(rows), LOAD)
    ElementTree.parse(path)  # well-formed, whatever the names
    return path.read_text(encoding="utf-8")


def test_the_picture_has_the_load_and_a_grid(tmp_path) -> None:
    text = drawn(tmp_path, {**ROW, "sizes": [(0.0, 1, 1), (300.0, 2, 2)]})
    assert text.count('class="load"') == 1
    assert text.count('class="grid"') > 8
    assert ">requests a second</text>" in text
    assert ">planned &lt;1&gt;: 91.0% in time, 1.5 worker-hours</text>" in text


def test_a_line_holds_each_size_until_the_next(tmp_path) -> None:
    text = drawn(tmp_path, {**ROW, "sizes": [(0.0, 1, 1), (300.0, 2, 2)]})
    line = re.search(
        r'class="line c0" d="M([\d.]+) ([\d.]+)H([\d.]+)V([\d.]+)H([\d.]+)V([\d.]+)"', text
    )
    assert line is not None
    start, low, half, high, end, last = map(float, line.groups())
    assert (half - start) * 2 == pytest.approx(end - start, abs=0.2)
    assert low > high == last


def test_a_run_writes_rows_and_a_picture(tmp_path, capsys) -> None:
    file, chart = tmp_path / "rows.json", tmp_path / "rows.svg"
    assert main([*FLAGS, "--output", str(file), "--chart", str(chart)]) == 0
    report = json.loads(file.read_text())
    assert [row["policy"] for row in report["rows"]] == ["fixed 1p1d", "planned"]
    assert "planned: 100.0% in time" in chart.read_text(encoding="utf-8")
    assert capsys.readouterr().err == ""


def test_a_target_out_of_reach_is_told(capsys) -> None:
    assert main([*FLAGS, "--slo", "ttft:1", "tpot:100"]) == 0
    assert "ttft:1 is out of reach of any number of workers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--thresholds", "nan:nan"], "--thresholds: 'nan:nan': both must be more than 0"),
        (["--thresholds", "0.4:0.8"], "UP must be above DOWN"),
        (["--queue-each", "0:16"], "--queue-each: '0:16': both must be more than 0"),
        (["--begin", "65p1d"], "--begin: 65p1d is more than --most 64p64d"),
        (["--fixed", "", "--policies", "none"], "nothing to compare"),
        (["--fixed", "1p0d"], "--fixed: '1p0d' is not a shape"),
        (["--slo", "ttft:9", "tpot:9", "goal:1.0"], "less than 1, as goal:0.95"),
        (["--trace", "/nowhere"], "cannot read /nowhere: No such file"),
        (["--rate", "0"], "--rate: must be more than 0"),
    ],
)
def test_wrong_flags_are_named_before_anything_is_printed(flags, said, capsys) -> None:
    assert main([*FLAGS, *flags]) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert told.out == ""


@pytest.mark.parametrize("content", ["", "[]", '{"rows": 5}', "\0"])
def test_a_file_that_is_no_result_is_not_overwritten(content, tmp_path, capsys) -> None:
    file = tmp_path / "other.json"
    file.write_text(content)
    assert main([*FLAGS, "--output", str(file)]) == 2
    assert "is no result of `baton bench cluster`; name a new file" in capsys.readouterr().err
    assert file.read_text() == content

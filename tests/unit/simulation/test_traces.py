"""Traces: what a file that is none is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import ConfigError
from simulation.traces import read_trace

LINE = '{"timestamp": 5, "input_length": 1, "output_length": 2, "hash_ids": [7]}\n'


def test_the_first_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(LINE * 3)
    assert [line.hash_ids for line in read_trace(path, 2, "--trace")] == [[7], [7]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LINE + '{"x": 1}\n', r"--trace: .*t\.jsonl line 2 is no line of a trace"),
        ("\n", r"--trace: .*t\.jsonl has no requests"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_under_the_flag(
    text: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_trace(path, 10, "--trace")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--dataset-path: cannot read .*none\.jsonl"):
        read_trace(tmp_path / "none.jsonl", 10, "--dataset-path")

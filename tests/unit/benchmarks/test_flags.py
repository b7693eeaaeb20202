"""Numbers that no benchmark can use are refused by their flag, before anything starts."""

from __future__ import annotations

import pytest

from deploy.cli import main


@pytest.mark.parametrize(
    "line",
    [
        *("engine --threads 0", "engine --prompts 0", "engine --contexts x", "engine --steps -1"),
        *("coordinator --tokens 0", "coordinator --step-ms nan", "coordinator --streams 0,8"),
        *("coordinator --port 99999", "kv --tokens 0", "kv --repeats 0"),
        *("serve --input-len 0", "serve --request-rate nan", "serve --burstiness -1"),
        *("serve --request-timeout inf", "serve --seed -1", "serve --max-rate 0"),
        *("serve --goodput ttft:nan", "serve --goodput ttft:0", "serve --metric-percentiles 101"),
        *("serve --trace-time-scale 0", "serve --temperature nan", "serve --custom-output-len 0"),
    ],
)
def test_a_number_that_cannot_be_is_refused_by_its_flag(line: str, capsys) -> None:
    assert main(["bench", *line.split()]) == 2
    told = capsys.readouterr()
    assert line.split()[1] in told.err
    assert (told.out, told.err.count("\n")) == ("", 1)

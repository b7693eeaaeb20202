"""`baton status --watch`: what a view of the cluster looks like in a terminal."""

from __future__ import annotations

import copy
import re
import sys

import pytest
from rich.console import Console

from deploy.cli import main
from deploy.commands.watch import BAR_CELLS, dashboard, kv_bar, spark

WORKER = {
    "id": "decode-0",
    "role": "decode",
    "state": "ready",
    "blocks": {"total": 100, "free": 25, "cached": 25, "held": 50},
    "requests": {"waiting": 11, "running": 12, "transferring": 13},
}
VIEW = {
    "model": "tiny",
    "ready": True,
    "workers": [WORKER, {**WORKER, "id": "prefill-0", "role": "prefill"}],
    "lost": [],
    "requests": {"live": 3, "queued": 1, "phases": {"queued": 1, "prefill": 0, "decode": 2}},
    "recent": {
        "output_tokens": [0] * 118 + [20, 40],
        "ttft_ms": [None] * 119 + [123.4],
        "tpot_ms": [None] * 120,
        "summary": {"output_tokens_per_s": 6.0, "ttft_ms": 123.4, "tpot_ms": None},
    },
}


def drawn(view: dict, width: int = 100) -> str:
    console = Console(record=True, width=width, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with console.file:
        console.print(dashboard(view))
        return console.export_text()


def test_prefill_comes_before_decode() -> None:
    text = drawn(VIEW)
    assert text.index("prefill-0") < text.index("decode-0")


def test_phases_are_in_the_order_of_a_request() -> None:
    assert "queued 1 → prefill 0 → decode 2" in drawn(VIEW)


def test_rate_and_ttft_are_shown() -> None:
    text = drawn(VIEW)
    assert "6.0" in text
    assert "123.4 ms" in text


def test_what_did_not_happen_is_a_dash() -> None:
    assert re.search(r"TPOT +- ", drawn(VIEW))


def test_lost_worker_tells_why() -> None:
    view = copy.deepcopy(VIEW)
    lost = {"id": "decode-1", "role": "decode", "state": "lost", "reason": "process exited"}
    view["lost"] = [{**lost, "for_s": 3.2}]
    assert "process exited, 3 s ago" in drawn(view)


def test_bar_has_one_length() -> None:
    blocks = {"total": 1000, "held": 1, "cached": 999}
    assert len(kv_bar(blocks, "green").plain.split()[0]) == BAR_CELLS


def test_one_held_block_shows() -> None:
    assert kv_bar({"total": 1000, "held": 1, "cached": 0}, "green").plain.startswith("█·")


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 1, 8], " ▁█"), ([None, 5.0], " █"), ([], ""), ([0, 0], "  "), ([1, 1000], "▁█")],
)
def test_spark_scales_to_the_highest(values, expected) -> None:
    assert spark(values) == expected


def test_watching_into_a_pipe_is_refused(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert main(["status", "--watch"]) == 2
    assert "--json" in capsys.readouterr().err

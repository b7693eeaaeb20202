"""How long a model stays, in every way that Ollama's clients write it."""

from __future__ import annotations

import pytest

from protocol.errors import InvalidRequest
from protocol.keep_alive import FOR_EVER, MAX_TEXT, parse_keep_alive


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (0, 0.0),
        (300, 300.0),
        (1.5, 1.5),
        ("0", 0.0),
        ("30", 30.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("250ms", 0.25),
        ("1.5h", 5400.0),
        (-1, FOR_EVER),
        ("-1", FOR_EVER),
        ("-5m", FOR_EVER),
        (1e300, FOR_EVER),
        (float("inf"), FOR_EVER),
        (None, None),
        ("", None),
    ],
)
def test_it_is_read_as_ollama_reads_it(said: float | str | None, seconds: float | None) -> None:
    assert parse_keep_alive(said, "keep_alive") == seconds


@pytest.mark.parametrize(
    "said", ["soon", "5 m", "m", "-", "5x", "nan", float("nan"), "1h" * 99, "\n5m"]
)
def test_what_is_no_time_is_refused_by_its_field(said: float | str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_keep_alive(said, "keep_alive")
    assert refused.value.param == "keep_alive"
    assert len(str(refused.value)) < MAX_TEXT + 200

"""A worker that nobody welcomes says so, less and less often."""

from __future__ import annotations

import pytest

from worker.introduction import HELLO_EVERY_S, PATIENCE_HELLOS, Introduction


def said_by(introduction: Introduction, first: int, end: int) -> int:
    """Hellos in these seconds, asked ten times in each."""
    return sum(introduction.is_due(first + tick / 10) for tick in range(10 * (end - first)))


def test_one_hello_a_second() -> None:
    assert said_by(Introduction("tcp://10.0.0.1:7300"), 0, 20) == pytest.approx(
        20 / HELLO_EVERY_S, abs=1
    )


def test_silence_is_told_with_the_address_and_rarely(caplog: pytest.LogCaptureFixture) -> None:
    introduction = Introduction("tcp://10.0.0.1:7300")
    said_by(introduction, 0, PATIENCE_HELLOS - 1)
    assert not caplog.records
    said_by(introduction, PATIENCE_HELLOS, 200)
    said = [record.getMessage() for record in caplog.records]
    assert [
        f" to {count} hellos" in text
        for count, text in zip((10, 20, 40, 80, 160), said, strict=True)
    ] == 5 * [True]
    assert "tcp://10.0.0.1:7300" in caplog.text


def test_an_answer_gives_patience_again(caplog: pytest.LogCaptureFixture) -> None:
    introduction = Introduction("ipc:///run/control")
    said_by(introduction, 0, PATIENCE_HELLOS)
    introduction.answered()
    said_by(introduction, PATIENCE_HELLOS, 2 * PATIENCE_HELLOS)
    assert not caplog.records

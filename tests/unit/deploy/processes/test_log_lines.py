"""Logging goes on when nobody reads it, and says afterwards how much is missing."""

from __future__ import annotations

import logging
import os
import re
import sys
import time

import pytest

from deploy.processes.log_lines import LineFormatter, QueuedLines, QueuedText
from tests.patience import PATIENCE_S, until


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, "", 0, message, (), None)


def test_a_full_pipe_blocks_nobody_and_the_rest_is_counted():
    reading, writing = os.pipe()
    handler = QueuedLines(writing, capacity=50)
    began = time.monotonic()
    for index in range(5000):
        handler.emit(record(f"{index} {'x' * 1000}"))
    assert time.monotonic() - began < PATIENCE_S
    assert handler.dropped > 4000
    text = b""
    while b"dropped: nobody read" not in text:
        text += os.read(reading, 1 << 16)
    while not handler.writer.is_empty:
        text += os.read(reading, 1 << 16)
    handler.emit(record("again"))
    handler.close()
    os.close(writing)
    while piece := os.read(reading, 1 << 16):
        text += piece
    os.close(reading)
    assert text.endswith(b"again\n")
    numbers = [int(line.split()[0]) for line in text.splitlines() if line.endswith(b"xxx")]
    assert numbers == sorted(numbers)
    assert len(numbers) == 5000 - handler.dropped
    told = re.findall(rb"^(\d+) log lines were dropped", text, re.MULTILINE)
    assert sum(map(int, told)) == handler.dropped


def test_closing_does_not_wait_for_a_reader_that_never_comes():
    reading, writing = os.pipe()
    handler = QueuedLines(writing, capacity=200)
    for _ in range(100):
        handler.emit(record("x" * 4000))
    began = time.monotonic()
    handler.close()
    assert time.monotonic() - began < PATIENCE_S
    os.close(reading)
    while handler.writer.is_running:
        handler.close()
    os.close(writing)


def test_a_reader_that_is_gone_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    handler = QueuedLines(writing)
    handler.emit(record("lost"))
    handler.close()
    os.close(writing)
    assert handler.dropped == 1


def test_a_full_disk_is_told_once_there_is_room(tmp_path):
    full, log = os.open("/dev/full", os.O_WRONLY), tmp_path / "log"
    handler = QueuedLines(full)
    for index in range(10):
        handler.emit(record(f"lost {index}"))
    until(lambda: handler.dropped == 10, "lines being dropped")
    roomy = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(roomy, full)
    handler.emit(record("again"))
    handler.close()
    os.close(full)
    os.close(roomy)
    told = "10 log lines were dropped: stderr could not be written (No space left on device)"
    assert log.read_text().splitlines() == ["again", told]


def test_printing_into_a_full_pipe_blocks_nobody():
    reading, writing = os.pipe()
    text = QueuedText(writing, capacity=20)
    began = time.monotonic()
    for _ in range(500):
        print("x" * 1000, file=text, flush=True)
    text.close()
    assert time.monotonic() - began < PATIENCE_S
    assert text.writer.dropped > 100
    os.close(reading)
    while text.writer.is_running:
        text.writer.close()
    os.close(writing)


def test_what_is_printed_arrives_in_order():
    reading, writing = os.pipe()
    with QueuedText(writing) as text:
        assert not text.isatty()
        print("naïve", 1, file=text)
        print("東京", file=text)
    os.close(writing)
    assert os.read(reading, 100).decode() == "naïve 1\n東京\n"
    os.close(reading)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("a\n09:00:00 INFO    coordinator forged", r"a\x0a09:00:00 INFO    coordinator forged"),
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("\r\t\x00\x7f\x85\x9b31m", r"\x0d\x09\x00\x7f\x85\x9b31m"),
        ("a\u2028b\u2029c\u202ed\u2066e", r"a\u2028b\u2029c\u202ed\u2066e"),
        ("東京 naïve %s 😀", "東京 naïve %s 😀"),
    ],
)
def test_a_message_is_one_line_that_drives_no_terminal(sent, shown):
    line = LineFormatter("coordinator").format(record(sent))
    assert re.fullmatch(r"\d\d:\d\d:\d\d INFO    coordinator .*", line)
    assert line.endswith(f" coordinator {shown}")


def test_a_process_may_be_called_anything():
    line = LineFormatter("50%s\n.decode-0").format(record("here"))
    assert line.endswith(r" 50%s\x0a.decode-0 here")


def test_a_traceback_keeps_its_lines_and_none_of_them_looks_like_a_record():
    made = record("failed")
    try:
        raise ValueError("a\n09:00:00 INFO    coordinator forged \x1b[2J")
    except ValueError:
        made.exc_info = sys.exc_info()
    head, *lines = LineFormatter("coordinator").format(made).split("\n")
    assert head.endswith("coordinator failed")
    assert lines[0] == "  Traceback (most recent call last):"
    assert lines[-1] == r"  09:00:00 INFO    coordinator forged \x1b[2J"
    assert all(line.startswith("  ") for line in lines)

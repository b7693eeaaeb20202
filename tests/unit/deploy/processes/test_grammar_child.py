"""The process that tries grammars, when it does not start: whoever asked may come again."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import threading
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from deploy.config.topology import cache_directory
from deploy.processes import grammar_child
from deploy.processes.grammar_child import COSTS_TOO_MUCH, TOO_LONG, GrammarProcess
from engine.checkpoints.embedded import fetch_embedded
from engine.checkpoints.prepare import prepare
from engine.checkpoints.prepared import read_manifest
from protocol.constraints import json_schema
from protocol.errors import GrammarsUnavailable
from tests.marks import deep
from tests.patience import PATIENCE_S, is_readable


async def test_one_that_ends_at_its_start_says_how(tmp_path: Path) -> None:
    process = GrammarProcess(tmp_path, 100, [2])
    with pytest.raises(GrammarsUnavailable, match=r"with status [1-9]") as told:
        await process.refusal(json_schema({"type": "string"}))
    assert (told.value.http_status, told.value.retry_after_s) == (503, 10.0)


async def test_one_that_is_too_slow_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_child, "START_S", 0.0)
    process = GrammarProcess(tmp_path, 100, [2])
    with pytest.raises(GrammarsUnavailable, match="was not ready within 0 s"):
        await process.refusal(json_schema({"type": "string"}))
    assert process._process is None


GOOD = json_schema({"type": "integer"})


def new_process() -> GrammarProcess:
    """Of the embedded model."""
    cache = cache_directory()
    prepared = prepare(fetch_embedded(cache, lambda *_: None), cache, "float32", lambda *_: None)
    return GrammarProcess(prepared, read_manifest(prepared).config.vocab_size, [2])


@pytest.fixture
async def process() -> AsyncIterator[GrammarProcess]:
    """One that has tried something."""
    process = new_process()
    assert await process.refusal(json_schema({"type": "null"})) is None
    yield process
    await process.close()


def pid_of(process: GrammarProcess) -> int:
    assert process._process is not None
    return process._process.pid


def send_to_each(process: GrammarProcess, number: int) -> asyncio.Task[None]:
    """The signal to the process that there is, and to each that follows it."""

    async def send() -> None:
        last = 0
        while True:
            found = process._process
            if found is not None and found.pid != last:
                last = found.pid
                with suppress(ProcessLookupError):
                    os.kill(last, number)
            await asyncio.wait({asyncio.ensure_future(asyncio.Event().wait())}, timeout=0.005)

    return asyncio.create_task(send())


async def test_a_good_schema_is_not_blamed_for_a_process_that_was_stopped(
    process: GrammarProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    os.kill(pid_of(process), signal.SIGSTOP)
    assert await process.refusal(GOOD) is None
    assert "did not get to run within 2 s; starting another" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGKILL, deep(signal.SIGTERM)])
async def test_a_good_schema_is_not_blamed_for_a_process_that_others_ended(
    process: GrammarProcess, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    os.kill(pid_of(process), signal.SIGSTOP)
    asked = asyncio.create_task(process.refusal(GOOD))
    await asyncio.wait({asked}, timeout=0.1)
    os.kill(pid := pid_of(process), number)
    with suppress(ProcessLookupError):  # SIGKILL has ended it, and it was taken note of already
        os.kill(pid, signal.SIGCONT)
    assert await asked is None
    assert f"was ended by {number.name}; starting another" in caplog.text


@pytest.mark.deep
async def test_what_is_ended_again_and_again_is_refused(process: GrammarProcess) -> None:
    killing = send_to_each(process, signal.SIGKILL)
    try:
        with suppress(GrammarsUnavailable):  # one that was killed before it was ready
            assert await process.refusal(GOOD) == COSTS_TOO_MUCH
    finally:
        killing.cancel()


async def test_a_schema_that_works_for_long_is_still_refused(
    process: GrammarProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_child, "COMPILE_S", 0.0)
    assert await process.refusal(GOOD) == TOO_LONG


async def test_a_process_that_others_leave_no_core_is_waited_for(
    process: GrammarProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is stopped, but what the system tells of it."""
    looked: list[int] = []

    def as_ready(child: Process) -> str:
        looked.append(child.pid)
        os.kill(child.pid, signal.SIGCONT)
        return "R"

    monkeypatch.setattr(grammar_child, "_state", as_ready)
    before = pid_of(process)
    os.kill(before, signal.SIGSTOP)
    assert await process.refusal(GOOD) is None
    assert (looked[0], pid_of(process)) == (before, before)


async def test_an_answer_that_the_loop_is_too_late_to_read_counts(
    process: GrammarProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where others leave the coordinator itself no core: answer and timeout are there at once."""
    monkeypatch.setattr(grammar_child, "COMPILE_S", 0.3)
    before = pid_of(process)
    os.kill(before, signal.SIGSTOP)
    asked = asyncio.create_task(process.refusal(GOOD))
    await asyncio.wait({asked}, timeout=0.01)
    os.kill(before, signal.SIGCONT)
    answers = os.open(f"/proc/{before}/fd/1", os.O_RDONLY | os.O_NONBLOCK)
    assert is_readable(answers, PATIENCE_S)
    os.close(answers)
    threading.Event().wait(0.4)
    assert await asked is None
    assert pid_of(process) == before


async def test_without_descriptors_whoever_asked_may_come_again() -> None:
    process = new_process()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(GrammarsUnavailable, match="cannot be started: Too many open files"):
            await process.refusal(GOOD)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await process.refusal(GOOD) is None
    await process.close()

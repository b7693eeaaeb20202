"""What befalls one process of a server while others ask: it is stopped, or has no descriptor, no memory, no room in files left.

usage: python -m tests.e2e.process_faults [PROCESS …] [--faults FAULT …]
       each named fault of each named process, one after the other; a line of JSON each, exit status 1 if one hurt anybody

Owns how a fault is brought and lifted; `tests/e2e/test_process_faults.py` has those that once did harm.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from tests.e2e.crowd import Crowd
from tests.e2e.server import PACED, Server
from tests.patience import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

USERS = 12
LARGE = 1_000_000
SHAPE = ("--pd", "1p1d1s", "--dtype", "float32", "--kv-cache-memory", "512MiB")
LIMITS = {
    "EMFILE": resource.RLIMIT_NOFILE,
    "ENOMEM": resource.RLIMIT_AS,
    "EFBIG": resource.RLIMIT_FSIZE,
}
"""EFBIG is what a file gets where a full disk has ENOSPC: the same failed write, for this process alone."""
HELD_S = {"SIGSTOP-4": 4.0, "SIGSTOP-20": 20.0, "EMFILE": 5.0, "ENOMEM": 5.0, "EFBIG": 5.0}
PROCESSES = ("coordinator", "launcher", "prefill", "decode", "store", "grammar")
UNABLE = "this worker's engine cannot keep to a grammar"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def serve(directory: Path, *more: str) -> Server:
    """Paced workers, a store with a disk, keys and a ledger."""
    store = f"dram=24MiB,disk=64MiB,path={directory}/store"
    return Server(*SHAPE, "--kv-store", store, *more, program=PACED)


def pid_of(server: Server, name: str) -> int:
    """Of one of PROCESSES."""
    if name == "launcher":
        return server.process.pid
    if name == "grammar":
        return grammar_pid(server)
    if name == "coordinator":
        return server.coordinator_pid()
    return int(server.worker(name)["pid"])


def grammar_pid(server: Server) -> int:
    """Of the process that tries grammars, once there is one."""
    if not (found := _grammars(server)):
        ask_for_json(server, 0)
        found = _grammars(server)
    return found[0]


def _grammars(server: Server) -> list[int]:
    commands = {pid: Path(f"/proc/{pid}/cmdline") for pid in server.descendants()}
    return [pid for pid, path in commands.items() if b"grammar_main" in path.read_bytes()]


def ask_for_json(server: Server, number: int) -> str:
    """How an answer ended that keeps to a schema which nobody asked for before, if `number` is new: UNABLE where the schema
    was found good, for a mock can do no more with one; else status and message, or what happened to the connection."""
    schema = SCHEMA | {"title": f"number {number}"}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 2,
        "response_format": form,
    }
    try:
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=2 * PATIENCE_S)
    except httpx.TransportError as error:
        return type(error).__name__
    if reply.status_code == 500:  # which the log explains
        return UNABLE
    return f"{reply.status_code} {reply.json()['error']['message']}"


def send_large(server: Server) -> str:
    """How a body ended that takes some memory, and is refused for its length."""
    try:
        reply = httpx.post(
            f"{server.url}/v1/completions",
            json={"prompt": "x " * LARGE, "max_tokens": 1},
            timeout=2 * PATIENCE_S,
        )
    except httpx.TransportError as error:
        return type(error).__name__
    return str(reply.status_code)


@contextmanager
def limited(pid: int, fault: str) -> Iterator[None]:
    """It gets nothing more of what the fault takes."""
    kind = LIMITS[fault]
    soft, hard = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (_taken(pid, fault), hard))
    try:
        yield
    finally:
        if Path(f"/proc/{pid}").exists():
            resource.prlimit(pid, kind, (soft, hard))


def _taken(pid: int, fault: str) -> int:
    """For memory nothing: it has what it has, and gets no more of the kernel."""
    if fault == "EMFILE":
        taken = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
        return next(number for number in itertools.count() if number not in taken)
    return 0


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP until the end."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # whoever waits for it may have ended it
            os.kill(pid, signal.SIGCONT)


def bring(pid: int, fault: str, meanwhile: Callable[[], None] = lambda: None) -> None:
    """One fault as long as HELD_S says."""
    held = stopped(pid) if fault.startswith("SIGSTOP") else limited(pid, fault)
    with held:
        ends_s = time.monotonic() + HELD_S[fault]
        meanwhile()
        threading.Event().wait(max(0.0, ends_s - time.monotonic()))


class Strangers:
    """New connections, and new schemas, while a fault lasts."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.told: list[str] = []

    def come(self) -> None:
        """Each says how it went; none of them may wait for ever."""
        for _ in range(3):
            self.told.append(ask_for_json(self.server, time.monotonic_ns()))
            self.told.append(send_large(self.server))


def attempt(server: Server, name: str, fault: str) -> dict[str, Any]:
    """What came of one fault."""
    said = len(server.log())
    before = server.cluster()
    strangers = Strangers(server)
    with Crowd(server.url, USERS, (40, 60)) as crowd:
        crowd.await_more(USERS)
        pid = pid_of(server, name)
        calls = threading.Thread(target=strangers.come)
        began_s = time.monotonic()
        bring(pid, fault, calls.start)
        calls.join()
        held_s = time.monotonic() - began_s
        crowd_failed = list(crowd.failures)
        if not crowd_failed:
            crowd.await_more(2 * USERS)
    until(server.is_healthy, "health")
    until(lambda: server.cluster()["requests"]["live"] == 0, "the end of all requests")
    after = server.cluster()
    again = ask_for_json(server, time.monotonic_ns())
    unable = [*strangers.told, again].count(UNABLE)
    until(lambda: server.log()[said:].count(UNABLE) >= unable, "the log to explain each 500")
    return {
        "process": name,
        "fault": fault,
        "completed": crowd.completed,
        "failures": crowd.failures[:3],
        "strangers": strangers.told,
        "again": again,
        "replays": after["replays"] - before["replays"],
        "is_the_same": Path(f"/proc/{pid}").exists(),
        "balanced": server.audit()["balanced"],
        "held_s": round(held_s, 1),
        "log": told_of(server.log()[said:]),
    }


def told_of(log: str) -> list[str]:
    """Its first lines, without what is said of the mock and a schema."""
    lines = log.splitlines()
    passing = (UNABLE, "internal error", "coordinator   ", "Traceback")
    return [line[:200] for line in lines if not any(word in line for word in passing)][:10]


def is_harmless(told: dict[str, Any]) -> bool:
    """Nobody else was hurt, and all is well afterwards."""
    return not told["failures"] and told["again"] == UNABLE and bool(told["balanced"])


def main() -> int:
    """See above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("processes", nargs="*", default=PROCESSES)
    parser.add_argument("--faults", nargs="*", default=list(HELD_S))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, serve(Path(directory)) as server:
        until(lambda: len(server.cluster()["workers"]) == 3, "all workers")
        results: list[dict[str, Any]] = []
        for name in arguments.processes:
            for fault in arguments.faults:
                try:
                    results.append(attempt(server, name, fault))
                except AssertionError as error:
                    told = {"process": name, "fault": fault, "failures": [str(error)[:400]]}
                    results.append(told | {"again": "", "balanced": False})
                print(json.dumps(results[-1]), flush=True)
    return 0 if all(map(is_harmless, results)) else 1


if __name__ == "__main__":
    sys.exit(main())

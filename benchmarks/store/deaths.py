"""What becomes of an answer whose decode worker is killed in the middle of it: with a store, and without one.

Two deaths, each of an answer to a prompt that nobody has seen: of the decode worker; of it and of the prefill worker that had the
prompt. Without a store the first finds the prompt where it was computed, as long as that has it, and the second nothing. The tokens
must be those of an answer that nobody disturbed, computed without any cache. What was computed again is told by those who
live on; the gap is the client's.
"""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.store.asking import serve
from benchmarks.store.turns import tokens_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.store.asking import Answer, Asked

DEATHS = ("decode", "decode_and_prefill")
MOST_BETWEEN = 16
"""Deaths come at another place of a block each time, of so many."""
SETTLED_S = 1.2
"""Two heartbeats later accounts are new."""


@dataclass
class Death:
    """One answer and what its worker's death did to it, by the accounts of those who live on: `computed_again` of
    the decode worker that goes on, `by_prefill` beside the prompt, which has a probe of 18 tokens in it of the worker that came back."""

    kind: str
    answer: Answer
    killed_after: int
    computed_again: int
    by_prefill: int
    read_tokens: int

    @property
    def gap_ms(self) -> float:
        """The longest between two tokens since the last that the dead worker gave."""
        came = self.answer.came_s[self.killed_after - 1 :]
        return 1e3 * max(b - a for a, b in itertools.pairwise(came))

    @property
    def itl_ms(self) -> float:
        """The median between two tokens before."""
        came = self.answer.came_s[: self.killed_after]
        return 1e3 * statistics.median(b - a for a, b in itertools.pairwise(came))


@dataclass
class Killer:
    """Finds who writes the answer, and ends it at one token."""

    server: Asked
    at: int
    with_prefill: bool = False
    pids: list[int] = field(default_factory=list)
    killed_after: int = 0

    def told(self, count: int) -> None:
        """So many tokens have come."""
        if self.killed_after:
            return
        if not self.pids and 2 * count >= self.at:
            self._look()
        if count >= self.at and self.pids:
            for pid in self.pids:
                os.kill(pid, signal.SIGKILL)
            self.killed_after = count

    def _look(self) -> None:
        workers = self.server.cluster()["workers"]
        writing = [w for w in workers if w["role"] == "decode" and w["requests"]["running"]]
        also = [w for w in workers if self.with_prefill and w["role"] == "prefill"]
        if len(writing) == 1:
            self.pids = [worker["pid"] for worker in (*writing, *also)]


def measure_deaths(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """The same deaths on a server without a store, then on one with a store."""
    found: dict[str, list[Death]] = {}
    expected: dict[str, tuple[int, ...]] = {}
    for name, more in (("no_store", ()), ("store", ("--kv-store", f"dram={asked.dram}"))):
        with ExitStack() as stack:
            server = serve(folder, asked, name, more, stack, pool=asked.pool)
            found[name] = _all_deaths(server, asked, expected)
    return _told(found)


def _all_deaths(
    server: Asked,
    asked: argparse.Namespace,
    expected: dict[str, tuple[int, ...]],
) -> list[Death]:
    seen: list[Death] = []
    shape = server.cluster()["target"]
    for number in range(asked.deaths * len(DEATHS)):
        server.await_workers(sum(shape.values()))
        kind = DEATHS[number % len(DEATHS)]
        name = f"death {number}"
        seen.append(_die(server, asked, kind, name, number))
        if name not in expected:
            prompt = tokens_of(name, asked.context)
            whole = server.complete(prompt, asked.answer_tokens, secrets.token_hex(8))
            expected[name] = whole.tokens
        if seen[-1].answer.tokens != expected[name]:
            raise SystemExit(f"{name} ({kind}): not the tokens of an answer that nobody disturbed")
        server.await_that(lambda: bool(server.audit()["balanced"]), "every account adding up")
    return seen


def _die(server: Asked, asked: argparse.Namespace, kind: str, name: str, number: int) -> Death:
    killer = Killer(
        server,
        at=asked.answer_tokens // 2 + number * 5 % MOST_BETWEEN,
        with_prefill=kind == "decode_and_prefill",
    )
    before = _totals(server)
    prompt = tokens_of(name, asked.context)
    answer = server.complete(prompt, asked.answer_tokens, told=killer.told)
    if not killer.killed_after:
        raise SystemExit(f"{name}: nobody was found to be writing the answer")
    time.sleep(SETTLED_S)
    after = _totals(server)
    computed = _since(before, after, "decode", "prefill_tokens")
    by_prefill = _since(before, after, "prefill", "prefill_tokens")
    first = 0 if killer.with_prefill else asked.context
    read = _since(before, after, "decode", "prefix_fetched_tokens")
    return Death(kind, answer, killer.killed_after, computed, by_prefill - first, read)


Accounts = dict[tuple[str, str], dict[str, int]]


def _since(before: Accounts, after: Accounts, role: str, what: str) -> int:
    """Of the processes of that role that were there before."""
    there = [key for key in before.keys() & after.keys() if key[0] == role]
    return sum(after[key][what] - before[key][what] for key in there)


def _totals(server: Asked) -> Accounts:
    """What each worker's process has done, by its role and incarnation."""
    return {(w["role"], w["incarnation"]): w["totals"] for w in server.cluster()["workers"]}


def _told(found: dict[str, list[Death]]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for kind in DEATHS:
        by_name = {n: [d for d in deaths if d.kind == kind] for n, deaths in found.items()}
        told[kind] = {name: _of_kind(deaths) for name, deaths in by_name.items()}
        gaps = [told[kind][name]["gap_ms"] for name in ("store", "no_store")]
        told[kind]["gap_of_replay"] = round(gaps[0] / gaps[1], 3)
    return told


def _of_kind(deaths: Sequence[Death]) -> dict[str, Any]:
    """Medians, and every death."""
    return {
        "gap_ms": round(statistics.median(death.gap_ms for death in deaths), 1),
        "all_gaps_ms": [round(death.gap_ms, 1) for death in deaths],
        "itl_ms": round(statistics.median(death.itl_ms for death in deaths), 1),
        "killed_after_tokens": [death.killed_after for death in deaths],
        "computed_again_tokens": [death.computed_again for death in deaths],
        "computed_again_by_prefill_tokens": [death.by_prefill for death in deaths],
        "read_tokens": [death.read_tokens for death in deaths],
    }

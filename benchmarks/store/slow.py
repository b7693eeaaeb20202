"""Whom a store slows that is slow itself: times to the first token beside a server that has none.

Two servers, one with a store and one without, get the same short prompts, some at one and then the same at the other. Most prompts are
new; some came before, too long ago for a worker's own cache, so that a store is asked. In turn the store is well, its
disk stalls at each call, it is stopped, and it is killed again and again. Tokens must be equal throughout.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.store.asking import serve
from benchmarks.store.turns import tokens_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from benchmarks.store.asking import Asked

STATES = ("well", "disk_stalls", "stopped", "killed")
TOGETHER = 8
"""Requests at one server before the other gets its turn: what a store does behind an answer meets its own server."""
AGAIN_EVERY, AGAIN_AFTER = 4, 41
"""One prompt of so many came before, so many requests ago."""
ANSWER_TOKENS = 3
SOURCE = Path(__file__).with_name("slow_disk.c")


class SlowDisk:
    """The library that makes a folder slow, and how slow it is now."""

    def __init__(self, folder: Path, slowed: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise SystemExit("--measure slow: there is no C compiler for the disk that stalls")
        library = folder / "slow_disk.so"
        flags = ("-shared", "-fPIC", "-O1", "-o", str(library))
        subprocess.run([compiler, *flags, str(SOURCE), "-ldl"], check=True)
        self._told = folder / "slow_disk.ms"
        self.stalls(0)
        self.before = (
            "env",
            f"LD_PRELOAD={library}",
            f"BATON_SLOW_DISK={slowed}",
            f"BATON_SLOW_DISK_MS={self._told}",
        )

    def stalls(self, ms: int) -> None:
        """Each call from now on takes so much longer."""
        self._told.write_text(f"{ms}")


def measure_slow(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Both servers from start to end, and the store through all its states."""
    path = folder / "kv"
    path.mkdir()
    disk = SlowDisk(folder, path)
    with ExitStack() as stack:
        sizes = f"dram={asked.slow_dram},disk={asked.disk},path={path}"
        more = ("--kv-store", sizes)
        store = serve(folder, asked, "slow", more, stack, pool=asked.pool, before=disk.before)
        plain = serve(folder, asked, "plain", (), stack, pool=asked.pool)
        store.await_store()
        shape = store.cluster()["target"]
        prompts = _prompts(asked.slow_tokens)
        told: dict[str, Any] = {}
        _ask_both(store, plain, prompts, AGAIN_AFTER, ())
        for state in STATES:
            store.await_workers(sum(shape.values()))
            disk.stalls(asked.stall_ms if state == "disk_stalls" else 0)
            told[state] = _in_state(store, plain, prompts, state, asked.slow_requests)
            if not told["well"]["store_lent_blocks"]:
                raise SystemExit("the store lent nothing while it was well: give --pool less")
        store.await_workers(sum(shape.values()))
        store.await_that(lambda: bool(store.audit()["balanced"]), "every account adding up")
        return told


def _prompts(num_tokens: int) -> Iterator[tuple[int, ...]]:
    """For ever; of AGAIN_EVERY one that came before."""
    seen: list[tuple[int, ...]] = []
    while True:
        is_again = len(seen) >= AGAIN_AFTER and len(seen) % AGAIN_EVERY == 0
        seen.append(seen[-AGAIN_AFTER] if is_again else tokens_of(f"slow {len(seen)}", num_tokens))
        yield seen[-1]


def _in_state(
    store: Asked, plain: Asked, prompts: Iterator[tuple[int, ...]], state: str, count: int
) -> dict[str, Any]:
    """Stopped it is for all of it, and killed anew for each turn that begins with one alive."""
    numbers = {"stopped": (signal.SIGSTOP,), "killed": (signal.SIGKILL,)}.get(state, ())
    stopped = [_store_pid(store)] if state == "stopped" else []
    before = _lent(store)
    ttft_ms = _ask_both(store, plain, prompts, count, numbers)
    for pid in stopped:
        _send(pid, signal.SIGCONT)
    return _figures(*ttft_ms) | {"store_lent_blocks": _lent(store) - before}


def _store_pid(server: Asked) -> int | None:
    workers = server.cluster()["workers"]
    return next((w["pid"] for w in workers if w["role"] == "store"), None)


def _lent(server: Asked) -> int:
    stores = [w["store"] for w in server.cluster()["workers"] if "store" in w]
    return sum(s["lent_memory_blocks"] + s["lent_disk_blocks"] for s in stores)


def _send(pid: int | None, number: signal.Signals) -> None:
    """To whom is there."""
    try:
        if pid is not None:
            os.kill(pid, number)
    except ProcessLookupError:
        return


def _ask_both(
    store: Asked,
    plain: Asked,
    prompts: Iterator[tuple[int, ...]],
    count: int,
    numbers: Sequence[signal.Signals],
) -> tuple[list[float], list[float]]:
    """Times to the first token in ms, with the store and without; before each turn with it, it gets the signals."""
    ttft_ms: tuple[list[float], list[float]] = ([], [])
    for begin in range(0, count, TOGETHER):
        turn = [next(prompts) for _ in range(min(TOGETHER, count - begin))]
        for number in numbers:
            _send(_store_pid(store), number)
        answers = [[s.complete(prompt, ANSWER_TOKENS) for prompt in turn] for s in (store, plain)]
        for one, other in zip(*answers, strict=True):
            if one.tokens != other.tokens:
                raise SystemExit("the answers differ, and should be the same tokens")
        for times, given in zip(ttft_ms, answers, strict=True):
            times += [answer.ttft_ms for answer in given]
    return ttft_ms


def _figures(store_ms: Sequence[float], plain_ms: Sequence[float]) -> dict[str, Any]:
    told: dict[str, Any] = {"requests": len(store_ms)}
    for percent in (50, 95, 99):
        one, other = (_percentile(times, percent) for times in (store_ms, plain_ms))
        told[f"p{percent}_ttft_ms"] = {"store": round(one, 1), "no_store": round(other, 1)}
        told[f"p{percent}_of_no_store"] = round(one / other, 3)
    return told


def _percentile(times: Sequence[float], percent: int) -> float:
    return statistics.quantiles(times, n=100, method="inclusive")[percent - 1]

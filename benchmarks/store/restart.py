"""How warm a server is after all of its processes were killed: known prompts against new ones, on the second start.

The tokens of a known prompt must be those that it had before the end, which were computed.
"""

from __future__ import annotations

import os
import signal
import statistics
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from benchmarks.store.asking import serve
from benchmarks.store.turns import tokens_of

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from benchmarks.store.asking import Asked


def measure_restart(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Two starts of one server on one disk."""
    store = ("--kv-store", f"dram={asked.dram},disk={asked.disk},path={folder / 'kv'}")
    names = [f"restart {number}" for number in range(asked.restart_prompts)]
    known = {name: tokens_of(name, asked.context) for name in names}
    with ExitStack() as stack:
        server = serve(folder, asked, "before", store, stack, pool=asked.pool)
        server.await_store()
        first = {}
        for name, prompt in known.items():
            first[name] = server.complete(prompt, asked.answer_tokens)
            server.await_kept()
        _await_on_disk(server, asked)
        _kill(server)
    with ExitStack() as stack:
        server = serve(folder, asked, "after", store, stack, pool=asked.pool)
        server.await_store()
        blocks = _await_on_disk(server, asked)
        server.await_that(
            lambda: server.cluster()["storing"]["known_blocks"] >= blocks, "the disk being known"
        )
        server.complete(tokens_of("restart warm-up", asked.context), 1)
        warm, cold = [], []
        for name, prompt in known.items():
            cold.append(server.complete(tokens_of(f"new {name}", asked.context), 1))
            warm.append(server.complete(prompt, asked.answer_tokens))
            if warm[-1].tokens != first[name].tokens:
                raise SystemExit(f"{name}: not the tokens that it had before the end")
        pairs = zip(warm, cold, strict=True)
        ratio = statistics.median(one.ttft_ms / other.ttft_ms for one, other in pairs)
        return {
            "prompt_tokens": asked.context,
            "known_ttft_ms": [round(answer.ttft_ms, 1) for answer in warm],
            "new_ttft_ms": [round(answer.ttft_ms, 1) for answer in cold],
            "known_of_new": round(ratio, 3),
            "cached_tokens": [answer.cached for answer in warm],
            "answer_tokens_compared": asked.answer_tokens,
        }


def _await_on_disk(server: Asked, asked: argparse.Namespace) -> int:
    """How many blocks those of all known prompts are; they are there."""
    store = next(w for w in server.cluster()["workers"] if "store" in w)
    blocks = int(asked.restart_prompts * (asked.context // store["block_size"]))

    def is_there() -> bool:
        workers = server.cluster()["workers"]
        return any(w["store"]["disk_blocks"] >= blocks for w in workers if "store" in w)

    server.await_that(is_there, f"{blocks} blocks on the disk")
    return blocks


def _kill(server: Asked) -> None:
    """Workers, coordinator and launcher, by a signal that nobody can refuse."""
    for pid in (*server.processes(), server.process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue

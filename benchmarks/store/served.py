"""What a store saves on real servers: one with it and one without, asked in turn.

Each request goes to both, and to the one without a second time under a salt that nobody has used, so that all of it is
computed. All three must give the same tokens. Times to the first token are the client's; what runs beside it meets all
three alike, so their ratios say more than they do.
"""

from __future__ import annotations

import secrets
import statistics
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.store.asking import serve
from benchmarks.store.turns import Histories, IdealCache
from deploy.config.values import parse_bytes

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.store.asking import Answer, Asked
    from benchmarks.store.turns import Turn


@dataclass
class Seen:
    """Of all requests, in order. `known` says of which the store's server had the larger part of the prompt."""

    store_ms: list[float] = field(default_factory=list)
    plain_ms: list[float] = field(default_factory=list)
    computed_ms: list[float] = field(default_factory=list)
    known: list[bool] = field(default_factory=list)
    prompt_tokens: int = 0
    store_tokens: int = 0
    plain_tokens: int = 0
    ideal_tokens: int = 0

    def add(self, prompt: Sequence[int], found: dict[str, Answer], ideal_tokens: int) -> None:
        """One request's three answers."""
        self.store_ms.append(found["store"].ttft_ms)
        self.plain_ms.append(found["plain"].ttft_ms)
        self.computed_ms.append(found["computed"].ttft_ms)
        self.known.append(2 * found["store"].cached > len(prompt))
        self.prompt_tokens += len(prompt)
        self.store_tokens += found["store"].cached
        self.plain_tokens += found["plain"].cached
        self.ideal_tokens += ideal_tokens


def measure_served(folder: Path, asked: argparse.Namespace, turns: list[Turn]) -> dict[str, Any]:
    """Both servers from start to end."""
    with ExitStack() as stack:
        store = f"dram={asked.dram},disk={asked.disk},path={folder / 'kv'}"
        with_store = serve(folder, asked, "store", ("--kv-store", store), stack, pool=asked.pool)
        plain = serve(folder, asked, "plain", (), stack, pool=asked.pool)
        with_store.await_store()
        ideal = _ideal_of(with_store.cluster(), parse_bytes(asked.dram))
        seen = _replay(with_store, plain, turns, asked.answer_tokens, ideal)
        return _told(seen, with_store.cluster())


def _replay(
    with_store: Asked,
    plain: Asked,
    turns: Sequence[Turn],
    answer_tokens: int,
    ideal: IdealCache,
) -> Seen:
    """Both in turn, and which of them is first too; SystemExit when any token differs."""
    histories, seen = Histories(), Seen()
    for number, turn in enumerate(turns):
        prompt = histories.prompt(turn)
        found: dict[str, Answer] = {}
        asks = [("store", with_store, None), ("plain", plain, None)]
        for name, server, salt in asks if number % 2 else reversed(asks):
            found[name] = server.complete(prompt, answer_tokens, salt)
        found["computed"] = plain.complete(prompt, answer_tokens, secrets.token_hex(8))
        if len({answer.tokens for answer in found.values()}) != 1:
            raise SystemExit(f"request {number}: the answers differ, and should be the same tokens")
        seen.add(prompt, found, ideal.asked(prompt))
        answer = found["store"].tokens
        ideal.used([*prompt, *answer])
        histories.answered(turn, prompt, answer)
        with_store.await_kept()
    return seen


def _ideal_of(view: dict[str, Any], dram_bytes: int) -> IdealCache:
    """As many blocks as the store's disk has room for."""
    store = next(worker for worker in view["workers"] if "store" in worker)
    block_bytes = dram_bytes / store["blocks"]["total"]
    return IdealCache(int(store["store"]["disk_limit_bytes"] // block_bytes), store["block_size"])


def _told(seen: Seen, view: dict[str, Any]) -> dict[str, Any]:
    store = next(worker["store"] for worker in view["workers"] if "store" in worker)
    all_times = {"store": seen.store_ms, "no_store": seen.plain_ms, "computed": seen.computed_ms}
    known = {
        name: [ms for ms, is_known in zip(times, seen.known, strict=True) if is_known]
        for name, times in all_times.items()
    }
    medians = {name: statistics.median(times) for name, times in known.items() if times}
    return {
        "requests": len(seen.known),
        "prompt_tokens": seen.prompt_tokens,
        "hit_rate": round(seen.store_tokens / seen.prompt_tokens, 4),
        "ideal_lru_hit_rate": round(seen.ideal_tokens / seen.prompt_tokens, 4),
        "of_ideal": round(seen.store_tokens / seen.ideal_tokens, 3) if seen.ideal_tokens else None,
        "hit_rate_without_store": round(seen.plain_tokens / seen.prompt_tokens, 4),
        "known_requests": sum(seen.known),
        "known_ttft_ms": {name: round(ms, 1) for name, ms in medians.items()},
        "ttft_of_no_store": _ratio(known["store"], known["no_store"]),
        "ttft_of_computed": _ratio(known["store"], known["computed"]),
        "lent_blocks": {t: store[f"lent_{t}_blocks"] for t in ("memory", "disk")},
        "disk_blocks": store["disk_blocks"],
        "proofs_failed": store["disk_proofs_failed"],
    }


def _ratio(times: list[float], others: list[float]) -> float | None:
    """The median of each request's own ratio."""
    ratios = [one / other for one, other in zip(times, others, strict=True)]
    return round(statistics.median(ratios), 3) if ratios else None

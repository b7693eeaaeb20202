"""What a store saves on real servers: one with it and one without, asked in turn.

Each request goes to both, and to the one without a second time under a salt that nobody has used, so that all of it is
computed. All three must give the same tokens. Times to the first token are the client's; what runs beside it meets all
three alike, so their ratios say more than they do.
"""

from __future__ import annotations

import json
import secrets
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks.servers import await_ready, end, free_port, start
from benchmarks.store.turns import Histories, IdealCache
from deploy.config.values import parse_bytes
from protocol.clock import precise_s

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from benchmarks.store.turns import Turn

KEPT_WITHIN_S = 20.0
"""The longest that a request waits for what came before it to be kept."""
LOOK_S = 0.02
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Answer:
    """Of one request; `cached` tokens of its prompt were not computed."""

    tokens: tuple[int, ...]
    cached: int
    ttft_ms: float


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


class Asked:
    """One server, of which the model's name is asked once."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False)
        self._model = self._client.get("/v1/models").json()["data"][0]["id"]

    def complete(self, prompt: Sequence[int], max_tokens: int, salt: str | None = None) -> Answer:
        """Greedy; SystemExit when it is not answered."""
        body = {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "cache_salt": salt,
        }
        tokens: list[int] = []
        cached, first_s, began_s = 0, None, precise_s()
        with self._client.stream("POST", "/v1/completions", json=body) as reply:
            if reply.status_code != 200:
                raise SystemExit(f"{reply.url} answered {reply.status_code}: {reply.read()!r}")
            for line in reply.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[len("data: ") :])
                if "error" in event:
                    raise SystemExit(f"{reply.url} failed: {event['error']}")
                tokens += [t for c in event["choices"] for t in c.get("token_ids") or ()]
                first_s = first_s or (precise_s() if tokens else None)
                if event.get("usage"):
                    details = event["usage"].get("prompt_tokens_details") or {}
                    cached = details.get("cached_tokens", 0)
        return Answer(tuple(tokens), cached, 1e3 * ((first_s or precise_s()) - began_s))

    def cluster(self) -> dict[str, Any]:
        """`GET /cluster`."""
        view: dict[str, Any] = self._client.get("/cluster").json()
        return view

    def await_store(self) -> None:
        """It serves before its store does."""
        until_s = precise_s() + PATIENCE_S
        while not any("store" in worker for worker in self.cluster()["workers"]):
            if precise_s() > until_s:
                raise SystemExit("the store did not start")
            time.sleep(LOOK_S)

    def await_kept(self) -> None:
        """All that was asked is in the store, or it takes too long."""
        until_s = precise_s() + KEPT_WITHIN_S
        while precise_s() < until_s:
            view = self.cluster()
            waits = sum(w["store"]["waiting_blocks"] for w in view["workers"] if "store" in w)
            if not view["storing"]["unkept_blocks"] and not waits:
                return
            time.sleep(LOOK_S)

    def close(self) -> None:
        """Let go of it."""
        self._client.close()


def measure_served(folder: Path, asked: argparse.Namespace, turns: list[Turn]) -> dict[str, Any]:
    """Both servers from start to end."""
    with ExitStack() as stack:
        store = f"dram={asked.dram},disk={asked.disk},path={folder / 'kv'}"
        with_store = _serve(folder, asked, "store", ("--kv-store", store), stack)
        plain = _serve(folder, asked, "plain", (), stack)
        with_store.await_store()
        ideal = _ideal_of(with_store.cluster(), parse_bytes(asked.dram))
        seen = _replay(with_store, plain, turns, asked.answer_tokens, ideal)
        return _told(seen, with_store.cluster())


def _serve(
    folder: Path, asked: argparse.Namespace, name: str, more: tuple[str, ...], stack: ExitStack
) -> Asked:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    model = (asked.model,) if asked.model else ()
    size = ("--pd", asked.pd, "--kv-cache-memory", asked.pool)
    command = [str(Path(sys.executable).parent / "baton"), "serve", *model, *size, *more]
    process = start([*command, "--port", str(port)], folder / f"{name}.log")
    stack.callback(end, process)
    await_ready(url, process)
    client = Asked(url)
    stack.callback(client.close)
    return client


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

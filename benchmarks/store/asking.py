"""Servers that a store's measures start, and how they are asked. Owns the processes from start to end."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks.servers import await_ready, descendants, end, free_port, start
from protocol.clock import precise_s

if TYPE_CHECKING:
    import argparse
    import subprocess
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

KEPT_WITHIN_S = 20.0
"""The longest that a request waits for what came before it to be kept."""
LOOK_S = 0.02
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Answer:
    """Of one request; `cached` tokens of its prompt were not computed. `came_s` is when each token came, by the client's
    clock."""

    tokens: tuple[int, ...]
    cached: int
    ttft_ms: float
    came_s: tuple[float, ...]

    @property
    def longest_gap_ms(self) -> float:
        """Between two tokens."""
        pairs = zip(self.came_s, self.came_s[1:], strict=False)
        return 1e3 * max((later - earlier for earlier, later in pairs), default=0.0)


def _nothing(_: int) -> None:
    """Nobody looks."""


class Asked:
    """One server, of which the model's name is asked once."""

    def __init__(self, url: str, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._client = httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False)
        self._model = self._client.get("/v1/models").json()["data"][0]["id"]

    def complete(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        salt: str | None = None,
        told: Callable[[int], None] = _nothing,
    ) -> Answer:
        """Greedy; SystemExit when it is not answered. `told` hears how many tokens have come, whenever some do."""
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
        came_s: list[float] = []
        cached, began_s = 0, precise_s()
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
                if len(tokens) > len(came_s):
                    came_s += [precise_s()] * (len(tokens) - len(came_s))
                    told(len(tokens))
                if event.get("usage"):
                    details = event["usage"].get("prompt_tokens_details") or {}
                    cached = details.get("cached_tokens", 0)
        ttft_ms = 1e3 * ((came_s[0] if came_s else precise_s()) - began_s)
        return Answer(tuple(tokens), cached, ttft_ms, tuple(came_s))

    def cluster(self) -> dict[str, Any]:
        """`GET /cluster`."""
        view: dict[str, Any] = self._client.get("/cluster").json()
        return view

    def audit(self) -> dict[str, Any]:
        """`GET /cluster/audit`."""
        account: dict[str, Any] = self._client.get("/cluster/audit").json()
        return account

    def processes(self) -> list[int]:
        """Pids below the launcher, whatever their session."""
        return descendants(self.process.pid)

    def await_that(self, is_so: Callable[[], bool], what: str) -> None:
        """SystemExit when it never is."""
        until_s = precise_s() + PATIENCE_S
        while not is_so():
            if precise_s() > until_s:
                raise SystemExit(f"{what} did not come about")
            time.sleep(LOOK_S)

    def await_store(self) -> None:
        """It serves before its store does."""
        self.await_that(
            lambda: any("store" in worker for worker in self.cluster()["workers"]),
            "a store that has started",
        )

    def await_workers(self, count: int) -> None:
        """So many are ready."""
        self.await_that(
            lambda: [w["state"] for w in self.cluster()["workers"]] == ["ready"] * count,
            f"{count} ready workers",
        )

    def await_kept(self) -> bool:
        """Whether all that was asked came to the store before it took too long."""
        until_s = precise_s() + KEPT_WITHIN_S
        while precise_s() < until_s:
            view = self.cluster()
            waits = sum(w["store"]["waiting_blocks"] for w in view["workers"] if "store" in w)
            if not view["storing"]["unkept_blocks"] and not waits:
                return True
            time.sleep(LOOK_S)
        return False

    def close(self) -> None:
        """Let go of it."""
        self._client.close()


def serve(  # noqa: PLR0913 - all of a command line
    folder: Path,
    asked: argparse.Namespace,
    name: str,
    more: Sequence[str],
    stack: ExitStack,
    *,
    pool: str,
    before: Sequence[str] = (),
) -> Asked:
    """`baton serve` of the shape that is asked, until `stack` ends; its words are in `folder`. `before` is what stands before
    it on the command line."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    model = (asked.model,) if asked.model else ()
    size = ("--pd", asked.pd, "--kv-cache-memory", pool)
    baton = str(Path(sys.executable).parent / "baton")
    command = [*before, baton, "serve", *model, *size, *more, "--port", str(port)]
    process = start(command, folder / f"{name}.log")
    stack.callback(end, process)
    await_ready(url, process)
    client = Asked(url, process)
    stack.callback(client.close)
    return client

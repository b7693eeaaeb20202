"""Many clients that stream from a server with the attesting mock, and check every token of every answer."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from deploy.config.topology import cache_directory
from deploy.host.model_source import prepare
from engine.attesting import attested_tokens
from engine.checkpoints.prepared import fingerprint
from protocol.content_keys import root_key
from tests.patience import PATIENCE_S
from tests.plain_http import NO_AUTHORITIES

MODEL = "smollm2-135m"
BLOCK_SIZE = 16


def mock_root() -> bytes:
    """Where every sequence of a mock worker begins, float32 and blocks of 16 tokens."""
    prepared = prepare(MODEL, (), "float32", cache_directory(), lambda *_: None)
    return root_key(fingerprint(Path(prepared.directory), BLOCK_SIZE).hash_bytes())


@dataclass(frozen=True)
class Asked:
    """One request: a prompt of token ids, and how much is to come."""

    prompt: list[int]
    max_tokens: int
    seed: int = 0

    def body(self) -> dict[str, Any]:
        return {
            "model": MODEL,
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": True,
        }

    def expected(self, root: bytes) -> list[int]:
        return attested_tokens(root, self.prompt, self.max_tokens, self.seed)


def read_tokens(line: str) -> list[int]:
    """The token ids of one SSE line; an error event fails the test."""
    if not line.startswith("data: {"):
        return []
    event = json.loads(line.removeprefix("data: "))
    assert "error" not in event, event
    return [token for choice in event["choices"] for token in choice.get("token_ids") or ()]


def stream_one(url: str, asked: Asked) -> list[int]:
    """All tokens of one answer."""
    with (
        httpx.Client(timeout=PATIENCE_S, verify=NO_AUTHORITIES) as client,
        client.stream("POST", f"{url}/v1/completions", json=asked.body()) as reply,
    ):
        assert reply.status_code == 200, reply.read()
        return [token for line in reply.iter_lines() for token in read_tokens(line)]


class Crowd:
    """`with Crowd(url, 100) as crowd:` keeps that many requests under way in a thread of its own.

    Afterwards `completed` counts right answers, and `failures` says what was not one."""

    def __init__(self, url: str, size: int, max_tokens: tuple[int, int] = (40, 80)) -> None:
        self.completed = 0
        self.tokens = 0
        self.failures: list[str] = []
        self._url, self._size, self._max_tokens = url, size, max_tokens
        self._root = mock_root()
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self._size)
        async with httpx.AsyncClient(
            base_url=self._url, timeout=PATIENCE_S, limits=limits, verify=NO_AUTHORITIES
        ) as client:
            await asyncio.gather(*(self._user(client, i) for i in range(self._size)))

    async def _user(self, client: httpx.AsyncClient, index: int) -> None:
        rng = random.Random(index)
        shared = list(range(200, 200 + 16 * (index % 3)))
        while not self._over.is_set():
            prompt = [*shared, *(rng.randrange(100, 49_000) for _ in range(rng.randrange(8, 40)))]
            asked = Asked(prompt, rng.randrange(*self._max_tokens), rng.randrange(1000))
            try:
                got = await self._stream(client, asked)
            except (AssertionError, httpx.HTTPError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                return
            if got != asked.expected(self._root):
                self.failures.append(f"wrong tokens for {asked}")
            self.completed += 1
            self.tokens += len(got)

    async def _stream(self, client: httpx.AsyncClient, asked: Asked) -> list[int]:
        got: list[int] = []
        async with client.stream("POST", "/v1/completions", json=asked.body()) as reply:
            assert reply.status_code == 200, await reply.aread()
            async for line in reply.aiter_lines():
                got += read_tokens(line)
        return got

    def await_more(self, count: int, seconds: float = 2 * PATIENCE_S) -> None:
        """Until so many more answers are complete; a failure ends the wait, and the test."""
        wanted, until_s = self.completed + count, time.monotonic() + seconds
        while self.completed < wanted:
            assert not self.failures, self.failures[:3]
            assert time.monotonic() < until_s, f"{self.completed} of {wanted} answers"
            self._over.wait(0.05)

    def __enter__(self) -> Crowd:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(2 * PATIENCE_S)
        assert not self._thread.is_alive(), "clients still wait for answers"

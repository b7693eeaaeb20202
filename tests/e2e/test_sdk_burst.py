"""200 of OpenAI's own clients at once: whole answers, streams, clients that leave, clients that wait no longer. Every answer
is accounted for: what the SDK was told, what `/metrics` counted and what the workers computed are the same numbers."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import openai
import pytest

from tests.e2e.server import PACED, Server
from tests.e2e.test_metrics_add_up import MODEL, settled
from tests.e2e.test_scaling import settle
from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
CLIENTS = 200
HASTY_S = 3.0
LONG = 3000


class Burst:
    """What the clients of one burst got."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.got: Counter[str] = Counter()

    async def run(self) -> None:
        """All at once."""
        async with openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="x", timeout=PATIENCE_S
        ) as client:
            await asyncio.gather(*(self._one(client, index) for index in range(CLIENTS)))

    async def _one(self, client: openai.AsyncOpenAI, index: int) -> None:
        rng = random.Random(index)
        kinds = (self._whole, self._streamed, self._chat, self._leaves, self._waits_no_longer)
        body = {
            "model": MODEL,
            "prompt": [100 + index, *(rng.randrange(100, 49_000) for _ in range(11))],
            "max_tokens": rng.randrange(4, 24),
            "seed": index,
        }
        try:
            await kinds[index % len(kinds)](client, body)
        except openai.RateLimitError:
            self.got["refused"] += 1

    def _used(self, usage: Any) -> None:
        self.got["whole"] += 1
        self.got["prompt"] += usage.prompt_tokens
        self.got["output"] += usage.completion_tokens
        self.got["cached"] += usage.prompt_tokens_details.cached_tokens

    async def _whole(self, client: openai.AsyncOpenAI, body: dict[str, Any]) -> None:
        self._used((await client.completions.create(**body)).usage)

    async def _streamed(self, client: openai.AsyncOpenAI, body: dict[str, Any]) -> None:
        more: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
        async for chunk in await client.completions.create(**body, **more):
            if chunk.usage is not None:
                self._used(chunk.usage)

    async def _chat(self, client: openai.AsyncOpenAI, body: dict[str, Any]) -> None:
        said: Any = [{"role": "user", "content": f"Say {body.pop('prompt')[0]}."}]
        self._used((await client.chat.completions.create(messages=said, **body)).usage)

    async def _leaves(self, client: openai.AsyncOpenAI, body: dict[str, Any]) -> None:
        """In the middle of a stream."""
        body |= {"max_tokens": LONG, "stream": True, "extra_body": {"ignore_eos": True}}
        stream = await client.completions.create(**body)
        seen = 0
        async for _ in stream:
            seen += 1
            if seen == 3:
                break
        await stream.close()
        self.got["left"] += 1
        self.got["prompt"] += len(body["prompt"])

    async def _waits_no_longer(self, client: openai.AsyncOpenAI, body: dict[str, Any]) -> None:
        body |= {"max_tokens": LONG, "extra_body": {"ignore_eos": True}}
        hasty = client.with_options(timeout=HASTY_S, max_retries=0)
        with pytest.raises(openai.APITimeoutError):
            await hasty.completions.create(**body)
        self.got["late"] += 1
        self.got["prompt"] += len(body["prompt"])


@pytest.fixture(scope="module")
def burst() -> Any:
    with Server(
        "--pd", "1p1d", "--kv-cache-memory", "512MiB", "--max-num-seqs", "256", program=PACED
    ) as server:
        probed = settled(server).total("baton_worker_prefill_tokens_total")
        burst = Burst(server.url)
        asyncio.run(burst.run())
        settle(server)
        yield burst.got, settled(server), probed


def test_nobody_but_who_chose_to_went_without_an_answer(burst: Any) -> None:
    got, _, _ = burst
    assert got["refused"] == 0
    assert (got["whole"], got["left"], got["late"]) == (120, 40, 40)


def test_usage_is_what_metrics_say(burst: Any) -> None:
    got, told, _ = burst
    unfinished = told.total("baton_unfinished_generation_tokens_total")
    assert told.total("vllm:generation_tokens_total") - unfinished == got["output"]
    assert told.total("vllm:prompt_tokens_total") == got["prompt"]
    assert told.total("vllm:prompt_tokens_cached_total") == got["cached"]


def test_every_client_is_counted_as_what_it_did(burst: Any) -> None:
    got, told, _ = burst
    ended: dict[str, float] = {
        reason: told.total("vllm:request_success_total", finished_reason=reason)
        for reason in ("abort", "error", "length", "stop")
    }
    assert ended["length"] + ended["stop"] == got["whole"]
    assert ended["abort"] == got["left"] + got["late"]
    assert ended["error"] == 0
    assert told.total("baton_client_disconnects_total") == got["left"] + got["late"]


def test_workers_computed_what_was_asked_and_little_more(burst: Any) -> None:
    """A prompt once, and of an answer whose client has gone a small part at most."""
    got, told, probed = burst
    assert told.total("baton_worker_prefill_tokens_total") - probed == got["prompt"] - got["cached"]
    begun = CLIENTS
    generated = told.total("vllm:generation_tokens_total")
    computed = told.total("baton_worker_decode_tokens_total")
    assert generated - begun <= computed <= generated + LONG / 30 * (got["left"] + got["late"])

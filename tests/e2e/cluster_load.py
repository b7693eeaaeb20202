"""A bounded load with exact answers, for a server that only its own host can reach.

usage: nsenter -t PID -n python -m tests.e2e.cluster_load URL      (until standard input ends, or after 240 s)

Learns the right answer of each prompt from a quiet server first and prints `ready`; prints a JSON line of totals at the end.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field

import httpx

PROMPTS = tuple(
    f"{subject} is known for its {thing}, and for"
    for subject in ("Lisbon", "Kyoto", "Oslo")
    for thing in ("harbour", "gardens")
)
MAX_TOKENS = 48
CONCURRENCY = 4
LIMIT_S = 240.0


@dataclass
class Totals:
    """What the load saw."""

    complete: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


async def answer(client: httpx.AsyncClient, prompt: str) -> str:
    """The streamed text; ValueError when the stream does not end as it should."""
    body = {"model": "smollm2-135m", "prompt": prompt, "max_tokens": MAX_TOKENS, "stream": True}
    text, reason = "", None
    async with client.stream("POST", "/v1/completions", json={**body, "temperature": 0}) as reply:
        if reply.status_code != 200:
            raise ValueError(f"{reply.status_code}: {(await reply.aread()).decode()}")
        async for line in reply.aiter_lines():
            if line == "data: [DONE]":
                break
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                if "choices" not in event:
                    raise ValueError(line)
                text += event["choices"][0]["text"]
                reason = event["choices"][0]["finish_reason"] or reason
    if reason not in ("length", "stop"):
        raise ValueError(f"finish_reason {reason}")
    return text


async def one_client(
    client: httpx.AsyncClient, right: dict[str, str], totals: Totals, over: asyncio.Event
) -> None:
    until_s = time.monotonic() + LIMIT_S
    while not over.is_set() and time.monotonic() < until_s:
        for prompt, expected in right.items():
            if over.is_set():
                return
            started_s = time.monotonic()
            try:
                got = await answer(client, prompt)
            except (httpx.HTTPError, ValueError) as error:
                totals.failed.append(f"{prompt!r}: {error!r}")
                continue
            totals.complete += 1
            totals.slowest_s = max(totals.slowest_s, time.monotonic() - started_s)
            if got != expected:
                totals.wrong.append(f"{prompt!r}: {got!r} is not {expected!r}")


async def main(url: str) -> None:
    totals, over = Totals(), asyncio.Event()
    async with httpx.AsyncClient(base_url=url, timeout=60.0) as client:
        right = {prompt: await answer(client, prompt) for prompt in PROMPTS}
        print("ready", flush=True)
        loop = asyncio.get_running_loop()
        ended = loop.run_in_executor(None, sys.stdin.read)
        clients = [
            asyncio.create_task(one_client(client, right, totals, over)) for _ in range(CONCURRENCY)
        ]
        await asyncio.wait({asyncio.ensure_future(ended)}, timeout=LIMIT_S)
        over.set()
        await asyncio.gather(*clients)
    print(json.dumps(asdict(totals)), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

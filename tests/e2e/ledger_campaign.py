"""A coordinator that is killed again and again while clients of every dialect ask, leave and come back: what its ledger says then.

usage: python -m tests.e2e.ledger_campaign [--kills N] [--clients N] [--seed S] [--real]

One real `baton serve` with keys, limits, prices and a group of its own pools; the mock engine unless `--real`. Each kill comes at
some instant after some answers, so between reserving, telling and settling. A client knows whether it has all of an answer; every
request has a name of its own. At the end each answer that came whole is one row with its tokens, who left has a row of what was
told by then, and nothing else was booked. Exit status 1, and a line for each difference, if not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import yaml

from coordinator.accounts.database import open_database
from coordinator.accounts.terms import KeyTerms, make_key
from protocol.clock import wall_time_s
from tests.e2e.server import EAGER, Server
from tests.patience import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL, GROUP = "smollm2-135m", "group"
MOST_ANSWERS = 60
TALK = [{"role": "user", "content": "Hello"}]
PATHS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hello", "ignore_eos": True},
    "/v1/chat/completions": {"messages": TALK, "ignore_eos": True},
    "/v1/messages": {"messages": TALK},
    "/v1/responses": {"input": "Hello"},
    "/api/chat": {"messages": TALK},
}
Tokens = tuple[int, int]


@dataclass
class Seen:
    """What clients know: `whole` are answers that came to their end, `left` are those whose client hung up after so many
    pieces, `cut` are those that the server's death ended."""

    whole: dict[str, Tokens] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)


def lines_of(told: bytes) -> Iterator[dict[str, Any]]:
    """The JSON of each event or line."""
    for line in told.splitlines():
        text = line.removeprefix(b"data:").strip()
        if text.startswith(b"{"):
            yield json.loads(text)


def tokens_of(told: bytes) -> Tokens:
    """What an answer says that it took, in any dialect: the last of its words count."""
    found: dict[str, int] = {}
    for one in lines_of(told):
        for place in (one, one.get("response"), one.get("message")):
            usage = place.get("usage") if isinstance(place, dict) else None
            found |= usage or {}
        found |= {name: one[name] for name in one.keys() & {"prompt_eval_count", "eval_count"}}
    names = (
        ("prompt_tokens", "completion_tokens"),
        ("input_tokens", "output_tokens"),
        ("prompt_eval_count", "eval_count"),
    )
    cached = found.get("cache_read_input_tokens", 0)  # which Anthropic's input does not have
    return next((found[a] + cached, found[b]) for a, b in names if a in found)


def body_of(path: str, chance: random.Random) -> dict[str, Any]:
    """One request."""
    most, is_stream = chance.choice((1, 1, 2, 3, 12)), chance.random() < 0.5
    told = PATHS[path] | {"model": chance.choice((MODEL, GROUP)), "stream": is_stream}
    if path == "/v1/responses":
        return told | {"max_output_tokens": max(most, 1)}
    if path == "/api/chat":
        return told | {"options": {"num_predict": most}}
    if is_stream and path.endswith("completions"):
        told["stream_options"] = {"include_usage": True}
    return told | {"max_tokens": most}


class Campaign:
    """All clients of one server, and its deaths."""

    def __init__(self, server: Server, secret: str, chance: random.Random) -> None:
        self.server, self.chance = server, chance
        self.seen = Seen()
        self.refused: Counter[int] = Counter()
        self._headers = {"authorization": f"Bearer {secret}"}
        self._next = 0

    async def ask(self, session: aiohttp.ClientSession) -> None:
        """One request; some clients leave in the middle."""
        self._next += 1
        name, path = f"request-{self._next}", self.chance.choice(list(PATHS))
        body = body_of(path, self.chance)
        leaves = self.chance.random() < 0.05
        headers = self._headers | {"x-request-id": name}
        told, pieces = b"", 0
        try:
            async with session.post(self.server.url + path, json=body, headers=headers) as reply:
                if reply.status != 200:
                    self.refused[reply.status] += 1
                    return
                async for piece in reply.content.iter_any():
                    told, pieces = told + piece, pieces + 1
                    if leaves:
                        self.seen.left[name] = pieces
                        reply.close()
                        return
        except (aiohttp.ClientError, ConnectionError):
            self.seen.cut.add(name)
            return
        self.seen.whole[name] = tokens_of(told)

    async def live(self, num_clients: int) -> None:
        """One life of the coordinator: it is killed at some instant after some answers, and comes back."""
        loop, pid = asyncio.get_running_loop(), self.server.coordinator_pid()
        last = len(self.seen.whole) + self.chance.randrange(1, MOST_ANSWERS)
        dead, due = asyncio.Event(), list[asyncio.TimerHandle]()

        def kill() -> None:
            os.kill(pid, signal.SIGKILL)
            dead.set()

        async def client(session: aiohttp.ClientSession) -> None:
            while not dead.is_set():
                await self.ask(session)
                if len(self.seen.whole) >= last and not due:
                    due.append(loop.call_later(self.chance.uniform(0.0, 0.03), kill))

        async with aiohttp.ClientSession() as session, asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(client(session) for _ in range(num_clients)))
        awaited = (self.server.is_healthy, "the coordinator's next life", 5 * PATIENCE_S)
        await asyncio.to_thread(until, *awaited)


def rows_of(database: Path) -> list[tuple[str, int, int, str]]:
    """Name, tokens and end of every request."""
    told = "SELECT label, input_tokens, output_tokens, end FROM usage"
    with sqlite3.connect(database) as connection:
        return connection.execute(told).fetchall()


def differences(seen: Seen, rows: list[tuple[str, int, int, str]]) -> list[str]:
    """What is not as it should be."""
    booked: dict[str, tuple[int, int, str]] = {}
    wrong: list[str] = []
    for name, num_input, num_output, end in rows:
        if end == "crashed":
            if num_input or num_output:
                wrong.append(f"a crashed request costs {num_input} and {num_output}")
            continue
        if name in booked:
            wrong.append(f"{name} is booked twice")
        booked[name] = (num_input, num_output, end)
    for name, tokens in seen.whole.items():
        row = booked.pop(name, None)
        if row is None or row[:2] != tokens or row[2] in ("abort", "error"):
            wrong.append(f"{name} came whole with {tokens}, and is booked as {row}")
    for (
        name
    ) in seen.left:  # who left may have had all of a short answer in the kernel's hands already
        booked.pop(name, None)
    for name, row in booked.items():
        if row[2] not in ("abort", "error"):
            wrong.append(f"{name} never came whole, and is booked as {row}")
    return wrong


def options_of(directory: Path) -> tuple[list[str], str]:
    """Everything on, and a key that has every limit."""
    database = open_database(directory / "keys.db")
    limits: dict[str, Any] = {
        "requests_per_minute": 10**6,
        "tokens_per_minute": 10**9,
        "budget_tokens": 10**9,
    }
    made = make_key(
        KeyTerms(tenant="a", parallel_requests=100, budget=1e6, **limits), wall_time_s()
    )
    database.put_key(made.record)
    database.close()
    router = directory / "router.yaml"
    own = {"model_name": GROUP, "litellm_params": {"model": f"baton/{MODEL}"}}
    router.write_text(yaml.safe_dump({"model_list": [own]}), encoding="utf-8")
    told = ["--keys-db", str(directory / "keys.db"), "--router-config", str(router)]
    return [*told, "--price", f"{MODEL}=1/2", "--price", f"{GROUP}=1/2"], made.secret


def run(num_kills: int, num_clients: int, seed: int, program: tuple[str, ...]) -> list[str]:
    """What is wrong after so many deaths."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        options, secret = options_of(Path(directory))
        with Server(*options, program=program) as server:
            campaign = Campaign(server, secret, chance)
            for number in range(num_kills):
                asyncio.run(campaign.live(num_clients))
                if number % 10 == 9:
                    print(f"{number + 1} kills, {len(campaign.seen.whole)} answers", flush=True)
        rows, seen = rows_of(Path(directory) / "keys.db"), campaign.seen
    ends = Counter(row[3] for row in rows)
    told: dict[str, Any] = {"kills": num_kills, "whole": len(seen.whole), "left": len(seen.left)}
    told |= {"cut": len(seen.cut), "rows": len(rows), "ends": ends, "refused": campaign.refused}
    print(json.dumps(told), flush=True)
    return differences(seen, rows)


def main() -> int:
    """See above."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--real", action="store_true", help="the embedded model")
    asked = parser.parse_args()
    program = (*EAGER, "--real") if asked.real else EAGER
    wrong = run(asked.kills, asked.clients, asked.seed, program)
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

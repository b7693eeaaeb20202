"""What schemas cost those who ask for none, and those who ask.

usage: python -m benchmarks.grammars.bench [--measure hostile masks known] [--pd SIZES] [--output FILE] …

hostile  streams of plain text alone; then beside a client that sends one hostile schema after the other, none twice; then
         beside the plain answers that this client was given, without their schemas. Gaps and first tokens of the streams
masks    as many answers at once as --streams says, with a schema and without, in turn: the time of a token
known    one request alone, with a schema that is known and without, in turn: the first token

Each in turn for some rounds on one server. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.environment import environment
from benchmarks.grammars.asking import Process, Server, Times, Tried, served, streams
from benchmarks.grammars.schemas import HOSTILE, ORDERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.serve.client import Client

MEASURES = ("hostile", "masks", "known")
KEPT_TOKENS = 4
"""Of an answer to a hostile schema."""
WARM_UP_S = 2.0


async def hostile(server: Server, asked: argparse.Namespace) -> dict[str, Any]:
    """See the module."""
    found: dict[str, Times] = {"alone": Times(), "beside": Times(), "control": Times()}
    used: dict[str, list[dict[str, Any]]] = {name: [] for name in found}
    tried: list[Tried] = []
    await streams(server, asked, WARM_UP_S)
    for number in range(asked.rounds):
        own: list[Tried] = []
        for name in found:
            before = server.processes()
            task = asyncio.create_task(streams(server, asked, asked.seconds))
            if name == "beside":
                own = await sent_one_by_one(server, f"{number}", task)
            elif name == "control":
                await sent_as_before(server, own, task)
            add(found[name], await task)
            after = server.processes()
            used[name].append({n: u.since(before.get(n, Process())) for n, u in after.items()})
        tried += own
    slowest = max(tried, key=lambda one: one.took_s)
    return {
        "tried": len(tried),
        "kept": sum(one.is_kept for one in tried),
        "slowest": {"name": slowest.name, "s": round(slowest.took_s, 3)},
        **{name: figures(times) for name, times in found.items()},
        "beside_of_alone": ratios(found["beside"], found["alone"]),
        "beside_of_control": ratios(found["beside"], found["control"]),
        "used": used,
    }


def add(times: Times, more: Times) -> None:
    times.ttft_ms += more.ttft_ms
    times.gap_ms += more.gap_ms
    times.tpot_ms += more.tpot_ms


async def sent_one_by_one(server: Server, salt: str, task: asyncio.Task[Times]) -> list[Tried]:
    """Hostile schemas, each as soon as the one before is answered, until the streams are over."""
    client, began_s = server.client(), time.perf_counter()
    tried: list[Tried] = []
    while not task.done():
        name = list(HOSTILE)[len(tried) % len(HOSTILE)]
        schema = HOSTILE[name] | {"$comment": f"{salt} {len(tried)}"}
        message = server.chat(client, schema, KEPT_TOKENS)
        sent_s = time.perf_counter()
        outcome = await client.ask(message, 0)
        if not outcome.is_good and not outcome.error.startswith(("HTTP 400", "HTTP 503")):
            raise SystemExit(f"{name}: {outcome.error}")
        took_s = time.perf_counter() - sent_s
        tried.append(Tried(sent_s - began_s, name, took_s, outcome.is_good))
    client.close()
    return tried


async def sent_as_before(server: Server, tried: Sequence[Tried], task: asyncio.Task[Times]) -> None:
    """The answers that were given, when they were, without their schemas."""
    client, began_s = server.client(), time.perf_counter()
    for one in tried:
        if one.is_kept:
            left_s = one.after_s - (time.perf_counter() - began_s)
            await asyncio.wait({task}, timeout=max(left_s, 0.0))
            await client.ask(server.chat(client, None, KEPT_TOKENS), 0)
    client.close()


async def masks(server: Server, asked: argparse.Namespace) -> dict[str, Any]:
    """See the module."""
    found = {"without": Times(), "with": Times()}
    clients = [server.client() for _ in range(asked.streams)]
    for number in range(asked.rounds + 1):
        for name, times in found.items():
            schema = ORDERS if name == "with" else None
            own = await together(server, clients, schema, asked.answer_tokens)
            if number:
                add(times, own)
    told = {name: round(statistics.median(times.tpot_ms), 3) for name, times in found.items()}
    for client in clients:
        client.close()
    ratio = round(told["with"] / told["without"], 3)
    return {"streams": asked.streams, "tpot_ms": told, "with_of_without": ratio}


async def together(
    server: Server, clients: Sequence[Client], schema: object, answer_tokens: int
) -> Times:
    """One answer each, all at once."""
    times = Times()
    messages = [server.chat(client, schema, answer_tokens) for client in clients]
    asking = (client.ask(message, 0) for client, message in zip(clients, messages, strict=True))
    for outcome in await asyncio.gather(*asking):
        if outcome.num_output_tokens != answer_tokens:
            raise SystemExit(f"an answer of {outcome.num_output_tokens} tokens: {outcome.text!r}")
        times.add(outcome)
    return times


async def known(server: Server, asked: argparse.Namespace) -> dict[str, Any]:
    """See the module."""
    found: dict[str, list[float]] = {"without": [], "with": []}
    client = server.client()
    for number in range(asked.known_requests + 5):
        for name, ttft_ms in found.items():
            own = await together(server, [client], ORDERS if name == "with" else None, 2)
            if number >= 5:
                ttft_ms.extend(own.ttft_ms)
    client.close()
    told = {name: round(statistics.median(ttft_ms), 3) for name, ttft_ms in found.items()}
    more_ms = [one - other for one, other in zip(found["with"], found["without"], strict=True)]
    return {"ttft_ms": told, "more_ms": round(statistics.median(more_ms), 3)}


def figures(times: Times) -> dict[str, float]:
    """In milliseconds."""
    told: dict[str, float] = {"answers": len(times.ttft_ms), "gaps": len(times.gap_ms)}
    for name, values in (("ttft", times.ttft_ms), ("gap", times.gap_ms)):
        for percent in (50, 90, 99):
            told[f"{name}_p{percent}_ms"] = round(percentile(values, percent), 3)
    return told


def ratios(one: Times, other: Times) -> dict[str, float]:
    """Of each figure."""
    ones, others = figures(one), figures(other)
    return {name: round(ones[name] / others[name], 3) for name in ones if name.endswith("_ms")}


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    add_to = parser.add_argument
    add_to("--measure", nargs="+", choices=MEASURES, default=list(MEASURES))
    add_to("--model", help="default: the embedded one")
    add_to("--pd", default="1p1d")
    add_to("--pool", default="512MiB")
    add_to("--streams", type=int, default=4)
    add_to("--prompt-tokens", type=int, default=64)
    add_to("--answer-tokens", type=int, default=64)
    add_to("--seconds", type=float, default=15.0, help="of one turn of hostile")
    add_to("--rounds", type=int, default=4)
    add_to("--known-requests", type=int, default=100)
    add_to("--output", type=Path, metavar="FILE")
    asked = parser.parse_args(argv)
    report: dict[str, Any] = {"command": "python -m benchmarks.grammars.bench " + " ".join(argv)}
    report["environment"] = environment()
    measures = {"hostile": hostile, "masks": masks, "known": known}
    with tempfile.TemporaryDirectory() as folder, served(asked, Path(folder) / "log") as server:
        for name in asked.measure:
            report[name] = asyncio.run(measures[name](server, asked))
    line = json.dumps(report)
    if asked.output is not None:
        asked.output.write_text(line + "\n", encoding="utf-8")
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What Ray costs a request: time to first token under `--launcher ray` and under `--launcher local`.

usage: python -m benchmarks.launchers [--rounds 3] [--repeats 12] [--prompts 32,512] [--output FILE]

Rounds alternate between the two, each with a server of its own on an idle machine, one request at a time and every
prompt new. A row is the median over all rounds; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.duel import environment
from benchmarks.handover_gap import token_times
from benchmarks.servers import await_ready, end, free_port, start

LAUNCHERS = {
    "local": ("--launcher", "local"),
    "ray": ("--launcher", "ray", "--ray-address", "local"),
}


def ttfts_ms(url: str, prompt_tokens: int, repeats: int) -> list[float]:
    """Each request's time to first token; the first request is a warm-up."""
    found = []
    for _ in range(repeats + 1):
        prompt = [3 + number % 200 for number in secrets.token_bytes(prompt_tokens)]
        started_s = time.perf_counter()
        found.append((token_times(url, prompt)[0] - started_s) * 1e3)
    return found[1:]


def measure(launcher: str, prompts: list[int], repeats: int) -> dict[int, list[float]]:
    """Times by prompt length, from a server started for them."""
    port = free_port()
    url, baton = f"http://127.0.0.1:{port}", Path(sys.executable).parent / "baton"
    command = [str(baton), "serve", "--pd", "1p1d", "--port", str(port), *LAUNCHERS[launcher]]
    with tempfile.TemporaryDirectory() as directory:
        process = start(command, Path(directory) / "log")
        try:
            await_ready(url, process)
            return {tokens: ttfts_ms(url, tokens, repeats) for tokens in prompts}
        finally:
            end(process)


def compare(rounds: int, prompts: list[int], repeats: int) -> list[dict[str, object]]:
    """A row for each prompt length."""
    times: dict[tuple[str, int], list[list[float]]] = {}
    for number in range(rounds):
        order = list(LAUNCHERS) if number % 2 == 0 else list(LAUNCHERS)[::-1]
        for launcher in order:
            for tokens, found in measure(launcher, prompts, repeats).items():
                times.setdefault((launcher, tokens), []).append(found)
                print(
                    f"round {number} {launcher} {tokens} tokens: {statistics.median(found):.2f} ms",
                    flush=True,
                )
    return [_row(tokens, times["local", tokens], times["ray", tokens]) for tokens in prompts]


def _row(tokens: int, local: list[list[float]], ray: list[list[float]]) -> dict[str, object]:
    medians = {
        name: [statistics.median(found) for found in times]
        for name, times in (("local", local), ("ray", ray))
    }
    overall = {
        name: statistics.median([t for found in times for t in found])
        for name, times in (("local", local), ("ray", ray))
    }
    return {
        "prompt_tokens": tokens,
        "local_ms": round(overall["local"], 2),
        "ray_ms": round(overall["ray"], 2),
        "difference_ms": round(overall["ray"] - overall["local"], 2),
        "rounds_local_ms": [round(value, 2) for value in medians["local"]],
        "rounds_ray_ms": [round(value, 2) for value in medians["ray"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--prompts", default="32,512")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    prompts = [int(word) for word in arguments.prompts.split(",")]
    rows = compare(arguments.rounds, prompts, arguments.repeats)
    line = json.dumps({"command": sys.argv[1:], "environment": environment(), "ttft": rows})
    if arguments.output:
        arguments.output.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()

"""What Ray costs a request: time to first token under `--launcher ray` and under `--launcher local`.

usage: python -m benchmarks.peers.launchers [--pairs 60] [--prompts 32,512] [--baton COMMAND] [--output FILE]

Both servers run, and requests go to them in turn, one at a time, every prompt new: what else the machine does meets
both alike. Ray's own processes idle beside both (about 0.06 of a core). `--baton "python -m tests.e2e.mock_engine"` leaves out
the model, whose time varies by more than Ray could cost. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.environment import environment
from benchmarks.kv.handover_gap import token_times
from benchmarks.servers import await_ready, end, free_port, start

LAUNCHERS = {
    "local": ("--launcher", "local"),
    "ray": ("--launcher", "ray", "--ray-address", "local"),
}
SIZE = ("--pd", "1p1d", "--kv-cache-memory", "512MiB")


def ttft_ms(url: str, prompt_tokens: int) -> float:
    """Of one new prompt."""
    prompt = [3 + number % 200 for number in secrets.token_bytes(prompt_tokens)]
    started_s = time.perf_counter()
    return (token_times(url, prompt)[0] - started_s) * 1e3


def serve(baton: list[str], launcher: str, directory: Path, stack: ExitStack) -> str:
    """The URL of a server that ends with the stack."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [*baton, "serve", *SIZE, "--port", str(port), *LAUNCHERS[launcher]]
    process = start(command, directory / launcher)
    stack.callback(end, process)
    await_ready(url, process)
    return url


def compare(urls: dict[str, str], prompt_tokens: int, pairs: int) -> dict[str, object]:
    """Medians, and the median of the differences of pairs; the first pair is a warm-up."""
    found: dict[str, list[float]] = {launcher: [] for launcher in urls}
    for number in range(pairs + 1):
        order = list(urls) if number % 2 else list(urls)[::-1]
        for launcher in order:
            found[launcher].append(ttft_ms(urls[launcher], prompt_tokens))
    times = {launcher: values[1:] for launcher, values in found.items()}
    differences = [ray - local for local, ray in zip(times["local"], times["ray"], strict=True)]
    return {
        "prompt_tokens": prompt_tokens,
        "pairs": pairs,
        **{f"{launcher}_ms": round(statistics.median(v), 2) for launcher, v in times.items()},
        "difference_ms": round(statistics.median(differences), 2),
        "quartiles_of_differences_ms": [round(q, 2) for q in statistics.quantiles(differences)],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--prompts", default="32,512")
    parser.add_argument("--baton", default=str(Path(sys.executable).parent / "baton"))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    told: dict[str, object] = {"command": sys.argv[1:], "environment": environment()}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        baton = arguments.baton.split()
        urls = {name: serve(baton, name, Path(directory), stack) for name in LAUNCHERS}
        lengths = [int(word) for word in arguments.prompts.split(",")]
        told["ttft"] = [compare(urls, tokens, arguments.pairs) for tokens in lengths]
    line = json.dumps(told)
    if arguments.output:
        arguments.output.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()

"""How long a stream pauses where its request changes workers. Owns the arithmetic, and a server to ask.

    gap = (second token - first token) - median of the later steps

On an idle server with one request at a time, each prompt new, so that nothing is cached.
"""

from __future__ import annotations

import http.client
import itertools
import json
import secrets
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.servers import await_ready, end, free_port, start

PROMPT_TOKENS = 512
NEW_TOKENS = 24
REPEATS = 7


def token_times(url: str, prompt: list[int]) -> list[float]:
    """When each token of one streamed completion arrived."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port or 8000)
    body = {
        "prompt": prompt,
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
    }
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"{url} answered {response.status}: {response.read(300)!r}")
    times = [
        time.perf_counter()
        for line in response
        if line.startswith(b"data: {") and json.loads(line[6:]).get("choices")
    ]
    connection.close()
    return times


@dataclass(frozen=True)
class Handover:
    """Medians over a few requests, in ms. `ttft_ms` is of the whole prompt, nothing cached."""

    gap_ms: float
    ttft_ms: float


def measure_handover(url: str) -> Handover:
    """Ask an idle server a few times, the first request left out as warm-up."""
    gaps, ttfts = [], []
    for _ in range(REPEATS + 1):
        prompt = [3 + number % 200 for number in secrets.token_bytes(PROMPT_TOKENS)]
        started_s = time.perf_counter()
        times = token_times(url, prompt)
        steps = [later - earlier for earlier, later in itertools.pairwise(times)]
        gaps.append((steps[0] - statistics.median(steps[1:])) * 1e3)
        ttfts.append((times[0] - started_s) * 1e3)
    return Handover(round(statistics.median(gaps[1:]), 3), round(statistics.median(ttfts[1:]), 1))


def serve_and_measure(transport: str) -> Handover:
    """The same against a server of our own, one prefill and one decode worker over `transport`."""
    port = free_port()
    url, baton = f"http://127.0.0.1:{port}", Path(sys.executable).parent / "baton"
    command = [str(baton), "serve", "--pd", "1p1d", "--transport", transport, "--port", str(port)]
    with tempfile.TemporaryDirectory() as directory:
        process = start(command, Path(directory) / "log")
        try:
            await_ready(url, process)
            return measure_handover(url)
        finally:
            end(process)

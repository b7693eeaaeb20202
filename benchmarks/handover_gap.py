"""How long a stream pauses where its request changes workers. Owns the arithmetic; asks a running server.

    gap = (second token - first token) - median of the later steps

On an idle server with one request at a time, each prompt new, so that nothing is cached.
"""

from __future__ import annotations

import http.client
import itertools
import json
import secrets
import statistics
import time
from urllib.parse import urlsplit

PROMPT_TOKENS = 512
NEW_TOKENS = 24
REPEATS = 7


def _token_times(url: str, prompt: list[int]) -> list[float]:
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


def handover_gap_ms(url: str) -> float:
    """Median gap of a few requests, the first one left out as warm-up."""
    gaps = []
    for _ in range(REPEATS + 1):
        prompt = [3 + number % 200 for number in secrets.token_bytes(PROMPT_TOKENS)]
        times = _token_times(url, prompt)
        steps = [later - earlier for earlier, later in itertools.pairwise(times)]
        gaps.append((steps[0] - statistics.median(steps[1:])) * 1e3)
    return round(statistics.median(gaps[1:]), 3)

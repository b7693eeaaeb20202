"""What adapters cost a server: a thousand names, the first use of each, eight streams of them, and names that change their content.

usage: python -m benchmarks.serve.adapters --output FILE [--measure first_use pace reloads] [--adapters 1000] [--uses 40] [--rounds 5] [--reloads 300]

The embedded model from two pools, adapters of rank 16 for all linear layers, random, as PEFT writes them; 32 of them stay in a worker's
memory. `first_use` is told beside the next use of the same adapter, `pace` beside streams without adapters, both in turn, so that other
work on the machine meets both. Processor time is that of the server's processes. A stale answer is one of another content.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np

from benchmarks import servers
from benchmarks.environment import environment
from coordinator.cluster.registry import SILENCE_S
from deploy.config.topology import cache_directory
from engine.adapters.modules import modules_of
from engine.checkpoints.embedded import fetch_embedded
from engine.checkpoints.prepare import prepare
from engine.checkpoints.prepared import read_manifest
from worker.heartbeat import HEARTBEAT_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol.model_config import ModelConfig

MODEL = "smollm2-135m"
MEASURES = ("first_use", "pace", "reloads")
RANK, MAX_LORAS, STREAMS, TOKENS = 16, 32, 8, 96
CONTENTS, RELOAD_TOKENS = 6, 6
SPREAD = 0.5
OPTIONS = ("--pd", "1p1d", "--kv-cache-memory", "256MiB", "--enable-lora")
LIMIT_S = 120.0


def _ignore(stage: str, fraction: float) -> None:
    """Nobody waits for it."""


class Adapters:
    """Files of PEFT in one directory, which is written anew for each: `number` says which content it has."""

    def __init__(self, directory: Path, model: ModelConfig) -> None:
        self.directory = directory
        directory.mkdir()
        rng = np.random.default_rng(1)
        self._tensors = {}
        for module in modules_of(model):
            sizes = (RANK, module.inputs), (module.outputs, RANK)
            for which, shape, size in zip(
                "AB", sizes, (module.inputs**-0.5, SPREAD * RANK**-0.5), strict=True
            ):
                name = f"base_model.model.{module.name}.lora_{which}.weight"
                self._tensors[name] = rng.standard_normal(shape, dtype=np.float32) * size
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK}
        (directory / "adapter_config.json").write_text(
            json.dumps(config | {"target_modules": "all-linear"})
        )

    def write(self, number: int) -> None:
        """Every content differs from every other in all of its numbers."""
        header, offset, blocks = {}, 0, []
        for name, tensor in self._tensors.items():
            data = np.roll(tensor, number + 1).astype(np.float32).tobytes()
            ends = [offset, offset + len(data)]
            header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": ends}
            offset = ends[1]
            blocks.append(data)
        head = json.dumps(header).encode()
        with (self.directory / "adapter_model.safetensors").open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            file.writelines(blocks)


class Asked:
    """The server as its clients know it."""

    def __init__(self, url: str, pid: int, adapters: Adapters) -> None:
        self.client, self.pid = httpx.Client(base_url=url, timeout=LIMIT_S), pid
        self._adapters = adapters

    def load(self, name: str, number: int) -> float:
        """That content under that name; seconds."""
        self._adapters.write(number)
        body = {"lora_name": name, "lora_path": str(self._adapters.directory)}
        started_s = time.perf_counter()
        reply = self.client.post("/v1/load_lora_adapter", json=body | {"load_inplace": True})
        reply.raise_for_status()
        return time.perf_counter() - started_s

    def tokens(self, name: str, prompt: list[int], count: int) -> list[int]:
        """Greedy."""
        body = {"model": name, "prompt": prompt, "max_tokens": count, "temperature": 0}
        reply = self.client.post(
            "/v1/completions", json=body | {"ignore_eos": True, "return_token_ids": True}
        )
        reply.raise_for_status()
        found: list[int] = reply.json()["choices"][0]["token_ids"]
        return found

    def seconds(self, name: str, prompt: list[int], count: int = 2) -> float:
        """To a second token: both pools have used the adapter by then."""
        started_s = time.perf_counter()
        self.tokens(name, prompt, count)
        return time.perf_counter() - started_s

    def resident(self) -> dict[str, int]:
        """How many adapters have a name, and how many each worker says that it has in memory."""
        told = self.client.get("/cluster").json()["adapters"]
        found = {"registered": told["registered"]}
        for one in told["resident"]:
            for worker in one["workers"]:
                found[worker] = found.get(worker, 0) + 1
        return found

    def processor_s(self) -> float:
        """Of all processes so far."""
        ticks = os.sysconf("SC_CLK_TCK")
        found = 0.0
        for pid in [self.pid, *servers.descendants(self.pid)]:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found += (int(fields[11]) + int(fields[12])) / ticks
        return found


def prompt_of(chance: random.Random, length: int = 32) -> list[int]:
    """No two begin alike."""
    return [chance.randrange(100, 40_000) for _ in range(length)]


def first_use(asked: Asked, count: int, uses: int) -> dict[str, Any]:
    """Of adapters that no worker has in memory, and the next use of each, with a prompt of the same length."""
    chance = random.Random(1)
    names = [f"adapter-{number}" for number in range(count)]
    load_s = [asked.load(name, number) for number, name in enumerate(names)]
    for _ in range(3):
        asked.seconds(MODEL, prompt_of(chance))
    cold, warm, base = [], [], []
    for name in chance.sample(names, uses):
        cold.append(asked.seconds(name, prompt_of(chance)))
        warm.append(asked.seconds(name, prompt_of(chance)))
        base.append(asked.seconds(MODEL, prompt_of(chance)))
    time.sleep(SILENCE_S + HEARTBEAT_S)  # who has told nothing new by then would be given up
    more = [first - next_ for first, next_ in zip(cold, warm, strict=True)]
    return {
        "load_s": spread(load_s),
        "in_memory": asked.resident(),
        "first_use_s": spread(cold),
        "next_use_s": spread(warm),
        "without_adapter_s": spread(base),
        "first_use_more_s": spread(more),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """What is told of many."""
    ordered = sorted(values)
    return {
        "count": len(ordered),
        "median": statistics.median(ordered),
        "p90": ordered[int(0.9 * (len(ordered) - 1))],
        "max": ordered[-1],
    }


def streams(asked: Asked, names: Sequence[str], chance: random.Random) -> tuple[float, float]:
    """Tokens a second, and a second of the processor, of answers side by side."""
    prompts = [prompt_of(chance) for _ in names]
    for name in names:
        asked.tokens(name, prompt_of(chance), 1)
    began, started_s = asked.processor_s(), time.perf_counter()
    with ThreadPoolExecutor(len(names)) as pool:
        jobs = [
            pool.submit(asked.tokens, name, prompt, TOKENS)
            for name, prompt in zip(names, prompts, strict=True)
        ]
        told = sum(len(job.result()) for job in jobs)
    took_s = time.perf_counter() - started_s
    return told / took_s, told / (asked.processor_s() - began)


def pace(asked: Asked, rounds: int) -> dict[str, Any]:
    """Eight streams: of the model, of one adapter, of eight."""
    chance = random.Random(2)
    for number in range(STREAMS):
        asked.load(f"stream-{number}", 10_000 + number)
    kinds = {
        "none": [MODEL] * STREAMS,
        "one": ["stream-0"] * STREAMS,
        "distinct": [f"stream-{number}" for number in range(STREAMS)],
    }
    seen: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for _ in range(rounds + 1):
        for kind, names in kinds.items():
            seen[kind].append(streams(asked, names, chance))
    told: dict[str, Any] = {"streams": STREAMS, "rank": RANK, "tokens_a_stream": TOKENS}
    for place, unit in enumerate(("tokens_per_s", "tokens_per_processor_s")):
        medians = {
            kind: statistics.median(one[place] for one in runs[1:]) for kind, runs in seen.items()
        }
        told[unit] = medians
        told[f"share_by_{unit}"] = {kind: medians[kind] / medians["none"] for kind in medians}
    return told | {"runs": {kind: runs[1:] for kind, runs in seen.items()}}


def reloads(asked: Asked, count: int) -> dict[str, Any]:
    """One name, one path, other contents at random: each answer beside that of the same content under a name of its own."""
    chance = random.Random(3)
    prompts = [prompt_of(chance, 40) for _ in range(3)]
    expected: dict[tuple[int, int], list[int]] = {}
    for content in range(CONTENTS):
        asked.load(f"own-{content}", 20_000 + content)
        for place, prompt in enumerate(prompts):
            expected[content, place] = asked.tokens(f"own-{content}", prompt, RELOAD_TOKENS)
    stale = wrong = 0
    for _ in range(count):
        content = chance.randrange(CONTENTS)
        asked.load("changing", 20_000 + content)
        place = chance.randrange(len(prompts))
        tokens = asked.tokens("changing", prompts[place], RELOAD_TOKENS)
        if tokens != expected[content, place]:
            wrong += 1
            stale += any(tokens == expected[other, place] for other in range(CONTENTS))
    return {
        "reloads": count,
        "contents": CONTENTS,
        "distinct_answers": len({str(one) for one in expected.values()}),
        "of": len(expected),
        "stale": stale,
        "wrong": wrong,
    }


def measure(given: argparse.Namespace) -> None:
    """One server; what was measured before stays in the file."""
    output: Path = given.output
    result: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
    command = f"python -m benchmarks.serve.adapters {' '.join(sys.argv[1:])}"
    told = {"environment": environment(), "command": command}
    cache = cache_directory()
    prepared = prepare(fetch_embedded(cache, _ignore), cache, "bfloat16", _ignore)
    with tempfile.TemporaryDirectory() as name:
        adapters = Adapters(Path(name, "adapter"), read_manifest(prepared).config)
        port = servers.free_port()
        words = [sys.executable, "-m", "baton_serve", "serve", MODEL, *OPTIONS]
        words += ["--dtype", "bfloat16", "--max-loras", str(MAX_LORAS), "--port", str(port)]
        process = servers.start(words, Path(name, "log"))
        try:
            servers.await_ready(f"http://127.0.0.1:{port}", process)
            asked = Asked(f"http://127.0.0.1:{port}", process.pid, adapters)
            asked.tokens(MODEL, prompt_of(random.Random(0)), TOKENS)
            measures = {
                "first_use": lambda: first_use(asked, given.adapters, given.uses),
                "pace": lambda: pace(asked, given.rounds),
                "reloads": lambda: reloads(asked, given.reloads),
            }
            for one in given.measure:
                result[one] = told | measures[one]()
                output.write_text(json.dumps(result, indent=1) + "\n")
        finally:
            servers.end(process)


def main() -> None:
    """As the usage says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--measure", nargs="+", choices=MEASURES, default=MEASURES)
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--uses", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reloads", type=int, default=300)
    measure(parser.parse_args())


if __name__ == "__main__":
    main()

"""A thousand adapters of one server, a few of them in memory: how long what takes, how much memory, and whether each answers as itself.

usage: python -m tests.e2e.adapter_campaign [--adapters N] [--resident N] [--reloads N] [--model DIR] [--rank R] [--out FILE]

Half of what is registered comes with `--lora-modules`, half by `/v1/load_lora_adapter`. The model has random weights unless one is
named. PEFT's merged models say what some of the adapters answer. Prints figures as JSON; exit status 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.adapter_files import merged, write_adapter
from tests.e2e.fleet_campaign import proportional_bytes
from tests.e2e.random_model import write_random_model
from tests.e2e.server import Server
from tests.greedy import expected_tokens
from tests.patience import until

if TYPE_CHECKING:
    from collections.abc import Sequence

WEIGHTS = "adapter_model.safetensors"
PROMPT = [40, 50, 60, 70]
FLAGS = ["--dtype", "float32", "--pd", "0p1d", "--kv-cache-memory", "64MiB", "--enable-lora"]
NUM_OUTPUT = 8
NUM_CONTENTS = 6
NUM_TIMED = 15


def write_adapters(base: Path, model: Path, count: int, rank: int) -> list[Path]:
    """The first by PEFT, the others like it with other numbers."""
    first = write_adapter(load(model), base / "0", 0, 2.0, r=rank)
    tensors, found = load_file(first / WEIGHTS), [first]
    generator = torch.Generator().manual_seed(1)
    for number in range(1, count):
        shutil.copytree(first, base / str(number))
        drawn = {
            name: torch.randn(one.shape, generator=generator) * one.std()
            for name, one in tensors.items()
        }
        save_file(drawn, base / str(number) / WEIGHTS, {"format": "pt"})
        found.append(base / str(number))
    return found


def load(model: Path) -> Any:
    """Fresh weights of the model."""
    return transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


class Campaign:
    """One server of `model`, and `paths` of its adapters; the adapter of a number is called `a<number>`."""

    def __init__(self, server: Server, model: Path, paths: Sequence[Path], resident: int) -> None:
        self._server, self._model, self._paths, self._resident = server, model, paths, resident
        self.failures: list[str] = []

    def ask(self, name: str, prompt: Sequence[int] = PROMPT, num: int = NUM_OUTPUT) -> list[int]:
        """Greedy tokens."""
        asked = {"model": name, "prompt": list(prompt), "max_tokens": num, "temperature": 0}
        told = self._server.complete(**asked, ignore_eos=True, return_token_ids=True)
        tokens: list[int] = told["choices"][0]["token_ids"]
        return tokens

    def expected(self, path: Path) -> list[int]:
        """By transformers, with PEFT's merged weights."""
        tokens: list[int] = expected_tokens(
            merged(partial(load, self._model), path), PROMPT, NUM_OUTPUT
        )
        return tokens

    def compare(self, name: str, expected: list[int]) -> None:
        """A failure if the adapter writes something else."""
        if (tokens := self.ask(name)) != expected:
            self.failures.append(f"{name} writes {tokens} instead of {expected}")

    def register(self, first: int) -> float:
        """All from that number on; seconds for each."""
        started_s = time.perf_counter()
        for number in range(first, len(self._paths)):
            body = {"lora_name": f"a{number}", "lora_path": str(self._paths[number])}
            assert self._server.client.post("/v1/load_lora_adapter", json=body).is_success
        return (time.perf_counter() - started_s) / max(1, len(self._paths) - first)

    def listed(self) -> float:
        """Seconds of `/v1/models`, which has them all."""
        started_s = time.perf_counter()
        cards = self._server.client.get("/v1/models").json()["data"]
        took_s = time.perf_counter() - started_s
        if len(cards) != len(self._paths) + 1:
            self.failures.append(f"/v1/models has {len(cards)} names")
        return took_s

    def touch(self, numbers: Sequence[int]) -> None:
        """Use these, one after the other: the last of them stay in memory, and answer as themselves."""
        for number in numbers:
            self.ask(f"a{number}", num=1)
        last = {f"a{number}" for number in list(dict.fromkeys(reversed(numbers)))[: self._resident]}

        def resident() -> dict[str, set[str]]:
            workers: dict[str, set[str]] = {}
            for one in self._server.cluster()["adapters"]["resident"]:
                for worker in one["workers"]:
                    workers.setdefault(worker, set()).add(one["name"])
            return workers

        try:
            until(lambda: last in resident().values(), "the last used are in memory", 10.0)
        except AssertionError:
            self.failures.append(f"in memory are {resident()}, used last were {sorted(last)}")
        if any(len(names) > self._resident for names in resident().values()):
            self.failures.append(f"more than {self._resident} are in memory: {resident()}")

    def first_use_s(self, numbers: Sequence[int]) -> tuple[list[float], list[float]]:
        """Seconds of one token by adapters that no worker has, and by the same ones when it has them."""
        cold: list[float] = []
        warm: list[float] = []
        for number in numbers:
            for place, times in enumerate((cold, warm)):
                prompt = [100 + number % 1000, 200 + place, *range(300, 330)]
                started_s = time.perf_counter()
                self.ask(f"a{number}", prompt, 1)
                times.append(time.perf_counter() - started_s)
        return cold, warm

    def reload(self, times: int) -> None:
        """One name and one path, every time with other content, which answers from then on."""
        contents = self._paths[:NUM_CONTENTS]
        known = [self.expected(path) for path in contents]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "changing"
            shutil.copytree(contents[0], path)
            for number in range(times):
                which = (number * number + number // 3) % NUM_CONTENTS
                shutil.copy(contents[which] / WEIGHTS, path / WEIGHTS)
                body = {"lora_name": "changing", "lora_path": str(path), "load_inplace": True}
                assert self._server.client.post("/v1/load_lora_adapter", json=body).is_success
                for _ in range(2):
                    self.compare("changing", known[which])
            self._server.client.post("/v1/unload_lora_adapter", json={"lora_name": "changing"})

    def memory_bytes(self) -> int:
        """Of all processes."""
        return sum(map(proportional_bytes, self._server.descendants()))


def measured(campaign: Campaign, paths: Sequence[Path], arguments: Any) -> dict[str, Any]:
    """Everything but the start."""
    half, count, resident = len(paths) // 2, len(paths), arguments.resident
    told: dict[str, Any] = {"bytes_before": campaign.memory_bytes()}
    told["load_s_each"] = campaign.register(half)
    told["models_s"] = campaign.listed()
    told["bytes_registered"] = campaign.memory_bytes()
    campaign.touch([*range(resident), *range(resident // 2), *range(half, half + resident // 4)])
    told["bytes_resident"] = campaign.memory_bytes()
    campaign.touch([(number * 37) % count for number in range(min(count, 6 * resident))])
    told["bytes_after_many"] = campaign.memory_bytes()
    for number in (0, half - 1, half, count - 1):
        campaign.compare(f"a{number}", campaign.expected(paths[number]))
    untouched = [
        n for n in range(count) if n not in {(m * 37) % count for m in range(6 * resident)}
    ]
    cold, warm = campaign.first_use_s(untouched[:NUM_TIMED])
    told["first_use_ms"] = [round(1e3 * value, 1) for value in cold]
    told["again_ms"] = [round(1e3 * value, 1) for value in warm]
    told["first_use_more_ms"] = 1e3 * (statistics.median(cold) - statistics.median(warm))
    told["first_use_most_more_ms"] = 1e3 * max(a - b for a, b in zip(cold, warm, strict=True))
    campaign.reload(arguments.reloads)
    told["reloads"] = arguments.reloads
    return told


def main() -> int:
    """Exit status 1 for any failure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--resident", type=int, default=32)
    parser.add_argument("--reloads", type=int, default=60)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "model").mkdir()
        model = arguments.model or write_random_model(base / "model")
        paths = write_adapters(base, model, arguments.adapters, arguments.rank)
        flags = [*FLAGS, "--served-model-name", "base"]
        with Server(str(model), *flags) as server:
            bare_s = server.ready_after_s
        modules = [f"a{number}={path}" for number, path in enumerate(paths[: len(paths) // 2])]
        more = ("--max-loras", str(arguments.resident), "--lora-modules", *modules)
        with Server(str(model), *flags, *more) as server:
            campaign = Campaign(server, model, paths, arguments.resident)
            told = {
                "command": " ".join(["python -m tests.e2e.adapter_campaign", *sys.argv[1:]]),
                "registered": len(paths),
                "rank": arguments.rank,
                "start_s_without": bare_s,
                "start_s_with_half": server.ready_after_s,
                **measured(campaign, paths, arguments),
                "balanced": server.audit()["balanced"],
                "failures": campaign.failures,
            }
    print(text := json.dumps(told, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    return 1 if campaign.failures or not told["balanced"] else 0


if __name__ == "__main__":
    sys.exit(main())

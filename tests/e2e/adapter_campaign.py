"""Two models and six adapters, each model in two pools of two, and workers that are killed: every answer is that of the merged model.

usage: python -m tests.e2e.adapter_campaign [--seconds N] [--clients N] [--seed S] [--out FILE]

Besides asking, every client loads one of the six contents under a name of its own, again and again, and asks at once: blocks of an
earlier content would show in the answer. PEFT's merged weights in transformers say what each name answers. Prints one line for each failure,
then the counts.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import transformers

from tests.adapter_files import merged, write_adapter
from tests.e2e.random_clients import BLOCKS, LONG, PROMPTS, SHORT, Oracle, RandomClients
from tests.e2e.random_model import write_random_model
from tests.e2e.server import Server
from tests.patience import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Callable

MODELS = ("red", "blue")
KINDS: dict[str, dict[str, Any]] = {
    "all": {"r": 16},
    "wide": {"r": 64, "lora_alpha": 32, "use_rslora": True},
    "some": {"r": 5, "target_modules": ["v_proj", "o_proj", "up_proj"]},
}
MOST_ADAPTERS = 2
"""In a worker's memory, so that they come and go."""
SPREAD = 2.0
KILL_EVERY_S = 8.0
WORKERS = 8
CONFIG = """
dtype: float32
cpu-affinity: none
kv-cache-memory: 16MiB
max-num-batched-tokens: 64
max-num-seqs: 8
pd: 2p2d
enable-lora: true
max-loras: {most}
models:
{models}
"""
MODEL = """  - model: {base}/{name}
    lora-modules: [{modules}]
"""


class Files:
    """The models, and of each three adapters; `sources` by the adapters' names, `bases` by the same."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.sources: dict[str, Path] = {}
        self.bases: dict[str, str] = {}
        loads: dict[str, Callable[[], Any]] = {}
        for seed, model in enumerate(MODELS):
            (base / model).mkdir()
            write_random_model(base / model, seed)
            load = functools.partial(_load, base / model)
            loads[model] = load
            for number, (kind, how) in enumerate(KINDS.items()):
                name = f"{model}-{kind}"
                source = write_adapter(load(), base / name, 10 * seed + number, SPREAD, **how)
                self.sources[name], self.bases[name] = source, model
                loads[name] = functools.partial(merged, load, source)
        self.oracle = Oracle(base / MODELS[0], loads)

    def config(self) -> Path:
        """The file that serves all of it."""
        models = "".join(
            MODEL.format(
                base=self.base,
                name=model,
                modules=", ".join(
                    f"{name}={source}"
                    for name, source in self.sources.items()
                    if self.bases[name] == model
                ),
            )
            for model in MODELS
        )
        path = self.base / "baton.yaml"
        path.write_text(CONFIG.format(most=MOST_ADAPTERS, models=models))
        return path


def _load(directory: Path) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(directory).eval()


class Campaign(RandomClients):
    """Against one server of `Files`."""

    def __init__(self, server: Server, files: Files, seed: int) -> None:
        super().__init__(server, files.oracle, seed)
        self._files = files
        self.kinds += [self.reload] * 3

    def run_beside_kills(
        self, seconds: float, num_clients: int = 6, kill_every_s: float = KILL_EVERY_S
    ) -> None:
        """So long; then everybody is there again, and the account is balanced."""
        self.run(seconds, num_clients, [functools.partial(self._kill, kill_every_s)])
        self._end()

    def reload(self, client: httpx.Client, chance: random.Random) -> None:
        """A content comes in place of another, and is asked at once, twice: computed, and out of the cache."""
        own = f"own-{os.getpid()}-{id(client)}"
        name = chance.choice(list(self._files.sources))
        body = {"lora_name": own, "lora_path": str(self._files.sources[name])}
        more = {"load_inplace": True, "base_model_name": self._files.bases[name]}
        if not self.is_answer(own, client.post("/v1/load_lora_adapter", json=body | more)):
            return
        for _ in range(2):
            reply = client.post("/v1/completions", json=self.completion(own, BLOCKS, SHORT))
            if self.is_answer(own, reply):
                tokens = reply.json()["choices"][0]["token_ids"]
                cached = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
                self.counts["found in a cache"] += cached > 0
                expected = self.oracle.tokens[name, BLOCKS][:SHORT]
                if tokens != expected:
                    self.failed(f"{own}, now {name}, says {tokens} instead of {expected}")

    def _kill(self, every_s: float) -> None:
        """One of those that serve, of any model and pool."""
        chance = random.Random(f"{self.seed} kills")
        with httpx.Client(base_url=self.server.url, timeout=2 * PATIENCE_S) as client:
            while not self.over.wait(every_s):
                workers = client.get("/cluster").json()["workers"]
                ready = [one for one in workers if one["state"] == "ready"]
                if len(ready) == WORKERS:
                    victim = chance.choice(ready)
                    self.counts[f"killed {victim['role']}"] += 1
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(victim["pid"], signal.SIGKILL)

    def _end(self) -> None:
        def is_whole() -> bool:
            workers = self.server.cluster()["workers"]
            return [one["state"] for one in workers] == ["ready"] * WORKERS

        until(is_whole, "all workers are back", 2 * PATIENCE_S)
        until(lambda: self.server.cluster()["requests"]["live"] == 0, "nobody is answered")
        if not (account := self.server.audit())["balanced"]:
            self.failed(f"the account is not balanced: {account}")
        for name in self.oracle.names:
            body = self.completion(name, PROMPTS[0], LONG)
            tokens = self.server.complete(**body)["choices"][0]["token_ids"]
            if tokens != self.oracle.tokens[name, PROMPTS[0]]:
                self.failed(f"{name} says {tokens} in the end")


def replays(server: Server) -> int:
    """Of both models."""
    return sum(one["replays"] for one in server.cluster()["models"].values())


def main() -> int:
    """Exit status 1 for any failure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder))
        distinct = len({str(tokens) for tokens in files.oracle.tokens.values()})
        with Server("--config", str(files.config())) as server:
            campaign, started_s = Campaign(server, files, arguments.seed), time.monotonic()
            campaign.run_beside_kills(arguments.seconds, arguments.clients)
            told = {
                "command": " ".join(["python -m tests.e2e.adapter_campaign", *sys.argv[1:]]),
                "seconds": round(time.monotonic() - started_s),
                "counts": dict(sorted(campaign.counts.items())),
                "answers_that_differ_by_name_and_prompt": distinct,
                "replays": replays(server),
                "failures": campaign.failures,
            }
    print("\n".join(campaign.failures))
    print(text := json.dumps(told, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    sys.exit(main())

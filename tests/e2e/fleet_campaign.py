"""Three models, memory for two, and clients that ask at random: every answer is its model's, nobody is lost, no more is in memory than fits.

usage: python -m tests.e2e.fleet_campaign [--seconds N] [--clients N] [--seed S] [--out FILE]

Clients speak OpenAI's and Ollama's dialects, whole and streamed, leave in the middle and while they wait, bring models in and send
them away; workers are killed now and then. transformers says what each model answers. Prints one line for each failure, then the counts.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import transformers

from tests.e2e.random_clients import Oracle, RandomClients
from tests.e2e.random_model import write_random_model
from tests.e2e.server import Server
from tests.patience import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NAMES = ("red", "blue", "green")
KILL_EVERY_S = 7.0
MOST_WORKERS = 3
"""That have room in this budget; red is the only one beside whom another fits only when it has shrunk."""
CONFIG = """
dtype: float32
cpu-affinity: none
kv-cache-memory: 16MiB
max-num-batched-tokens: 64
max-num-seqs: 8
memory-budget: 1400MiB
models:
  - {model: BASE/red, pd: 1p2d}
  - {model: BASE/blue, pd: 0p1d}
  - {model: BASE/green, pd: 0p1d}
"""


class Campaign(RandomClients):
    """Against one server of `NAMES`."""

    def __init__(
        self, server: Server, oracle: Oracle, seed: int, most_workers: int = MOST_WORKERS
    ) -> None:
        super().__init__(server, oracle, seed)
        self._most_workers = most_workers
        self.most_loaded = 0
        self.peak_bytes = 0
        self.kinds += [self.leave_the_line, self.load, self.unload]

    def run_beside_kills(self, seconds: float, num_clients: int = 6) -> None:
        """So long; then nobody asks any more, and everything has gone."""
        self.run(seconds, num_clients, (self._watch, self._kill))
        self._end()

    # ---- clients

    def leave_the_line(self, client: httpx.Client, chance: random.Random) -> None:
        """While it waits, if it has to."""
        name, prompt, num_tokens = self.asked(chance)
        body = self.completion(name, prompt, num_tokens)
        with contextlib.suppress(httpx.TimeoutException):
            client.post("/v1/completions", json=body, timeout=chance.choice((0.02, 0.1, 0.4)))

    def load(self, client: httpx.Client, chance: random.Random) -> None:
        """One of them is to come."""
        name = chance.choice(NAMES)
        self.is_answer(name, client.post("/models/load", json={"model": name}))

    def unload(self, client: httpx.Client, chance: random.Random) -> None:
        """One of them is to go."""
        name = chance.choice(NAMES)
        self.is_answer(name, client.post("/models/unload", json={"model": name}))

    # ---- beside them

    def _watch(self) -> None:
        with httpx.Client(base_url=self.server.url, timeout=2 * PATIENCE_S) as client:
            while not self.over.wait(0.2):
                self._look(client)
                self.peak_bytes = max(self.peak_bytes, self.memory_bytes())

    def _look(self, client: httpx.Client) -> None:
        """All that tell of models tell the same, where nothing changed meanwhile."""
        before = states(client)
        listed = states(client, "/v1/models")
        running = {card["name"] for card in client.get("/api/ps").json()["models"]}
        workers = {worker["id"] for worker in client.get("/cluster").json()["workers"]}
        if states(client) != before:
            return
        self.counts["looks"] += 1
        here = {name for name, state in before.items() if state not in ("unloaded", "failed")}
        self.most_loaded = max(self.most_loaded, len(here))
        if len(here) > 2:
            self.failed(f"{sorted(here)} are in memory for two")
        if listed != before:
            self.failed(f"/v1/models tells {listed}, /models {before}")
        if running != {name for name, state in before.items() if state == "loaded"}:
            self.failed(f"/api/ps tells {sorted(running)}, /models {before}")
        if len(workers) > self._most_workers:
            self.failed(f"{sorted(workers)} are more than there is memory for")
        if stray := {worker.partition(".")[0] for worker in workers} - here:
            self.failed(f"{sorted(stray)} have workers and are not in memory: {before}")

    def _kill(self) -> None:
        """Workers of models that serve: one that dies twice before it does cannot be loaded, and says so."""
        chance = random.Random(f"{self.seed} kills")
        with httpx.Client(base_url=self.server.url, timeout=2 * PATIENCE_S) as client:
            while not self.over.wait(KILL_EVERY_S):
                loaded = {name for name, state in states(client).items() if state == "loaded"}
                workers = client.get("/cluster").json()["workers"]
                workers = [one for one in workers if one["id"].partition(".")[0] in loaded]
                if workers:
                    self.counts["kills"] += 1
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(chance.choice(workers)["pid"], signal.SIGKILL)

    def memory_bytes(self) -> int:
        """What all processes of the server have of their own, and their parts of what they share."""
        return sum(map(proportional_bytes, self.server.descendants()))

    # ---- the end

    def _end(self) -> None:
        client = self.server.client
        for name in NAMES:
            client.post("/models/unload", json={"model": name})
        until(lambda: set(states(client).values()) <= {"unloaded", "failed"}, "all have gone")
        cards = client.get("/models").json()["data"]
        if any(card["users"] or card["waiting"] for card in cards):
            self.failed(f"somebody is left: {cards}")
        if not (account := self.server.audit())["balanced"]:
            self.failed(f"the account is not balanced: {account}")
        if workers := self.server.cluster()["workers"]:
            self.failed(f"workers are left: {workers}")


def states(client: httpx.Client, path: str = "/models") -> dict[str, str]:
    """Of every model that the campaign asks."""
    cards = client.get(path).json()["data"]
    return {card["id"]: card["status"]["value"] for card in cards if card["id"] in NAMES}


def proportional_bytes(pid: int) -> int:
    """0 for a process that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def shared_files() -> set[str]:
    """What lies in shared memory by a name."""
    return {entry.name for entry in os.scandir("/dev/shm")}


def write_models(base: Path, names: Iterable[str] = NAMES) -> dict[str, Path]:
    """Alike but for their weights."""
    found = {}
    for seed, name in enumerate(names):
        (base / name).mkdir()
        found[name] = write_random_model(base / name, seed)
    return found


def oracle_of(directories: Mapping[str, Path]) -> Oracle:
    """Of models that have one tokenizer."""

    def load(directory: Path) -> Any:
        return transformers.LlamaForCausalLM.from_pretrained(directory).eval()

    first = next(iter(directories.values()))
    return Oracle(first, {n: functools.partial(load, each) for n, each in directories.items()})


def main() -> int:
    """Exit status 1 for any failure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    files_before = shared_files()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        oracle = oracle_of(write_models(base))
        (base / "baton.yaml").write_text(CONFIG.replace("BASE", folder))
        with Server("--config", str(base / "baton.yaml")) as server:
            campaign = Campaign(server, oracle, arguments.seed)
            began_bytes, started_s = campaign.memory_bytes(), time.monotonic()
            campaign.run_beside_kills(arguments.seconds, arguments.clients)
            told = {
                "command": " ".join(["python -m tests.e2e.fleet_campaign", *sys.argv[1:]]),
                "seconds": round(time.monotonic() - started_s),
                "counts": dict(sorted(campaign.counts.items())),
                "loads": len(
                    re.findall(r"\bloading (?:red|blue|green)$", server.log(), re.MULTILINE)
                ),
                "shrinkings": len(re.findall(r"is to have .*'decode': 1", server.log())),
                "most_in_memory": campaign.most_loaded,
                "idle_bytes_before": began_bytes,
                "peak_bytes": campaign.peak_bytes,
                "idle_bytes_after": campaign.memory_bytes(),
                "failures": campaign.failures,
            }
    told["shared_files_left"] = sorted(shared_files() - files_before)
    print("\n".join(campaign.failures))
    print(text := json.dumps(told, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    return 1 if campaign.failures or told["shared_files_left"] else 0


if __name__ == "__main__":
    sys.exit(main())

"""Three models, memory for two, and clients that ask at random: every answer is its model's, nobody is lost, no more is in memory than fits.

usage: python -m tests.e2e.fleet_campaign [--seconds N] [--clients N] [--seed S] [--out FILE]

Clients speak OpenAI's and Ollama's dialects, whole and streamed, leave in the middle and while they wait, bring models in and send
them away; workers are killed now and then. transformers says what each model answers. Prints one line for each failure, then the counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import tokenizers
import transformers

from tests.e2e.random_model import END_OF_TURN, write_random_model
from tests.e2e.server import Server
from tests.greedy import expected_tokens
from tests.patience import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

NAMES = ("red", "blue", "green")
PROMPTS = ("Once upon a time there was", "def main():\n", "The capital of France", "1, 2, 3, 4,")
SHORT, LONG = 8, 64
KEEP_ALIVES = (None, None, None, 0, "2s", -1, "1m")
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


class Oracle:
    """What every model says to every prompt, by transformers."""

    def __init__(self, directories: Mapping[str, Path]) -> None:
        first = next(iter(directories.values()))
        self._tokenizer = tokenizers.Tokenizer.from_file(str(first / "tokenizer.json"))
        self.tokens = {
            (name, prompt): expected_tokens(model, self._tokenizer.encode(prompt).ids, LONG)
            for name, directory in directories.items()
            for model in [transformers.LlamaForCausalLM.from_pretrained(directory).eval()]
            for prompt in PROMPTS
        }

    def text(self, name: str, prompt: str, num_tokens: int) -> str:
        """To the end of turn, if that comes before."""
        tokens = self.tokens[name, prompt][:num_tokens]
        end = tokens.index(END_OF_TURN) if END_OF_TURN in tokens else len(tokens)
        text: str = self._tokenizer.decode(tokens[:end])
        return text


class Campaign:
    """Against one server of `NAMES`. `failures` are sentences, `counts` what was asked, and what came."""

    def __init__(
        self, server: Server, oracle: Oracle, seed: int, most_workers: int = MOST_WORKERS
    ) -> None:
        self._server, self._oracle, self._seed = server, oracle, seed
        self._most_workers = most_workers
        self.failures: list[str] = []
        self.counts: Counter[str] = Counter()
        self.most_loaded = 0
        self.peak_bytes = 0
        self._over = threading.Event()

    def run(self, seconds: float, num_clients: int = 6) -> None:
        """So long; then nobody asks any more, and everything has gone."""
        with ThreadPoolExecutor(num_clients + 2) as pool:
            jobs = [pool.submit(self._ask_at_random, number) for number in range(num_clients)]
            jobs += [pool.submit(self._watch), pool.submit(self._kill)]
            self._over.wait(seconds)
            self._over.set()
            for job in jobs:
                job.result()
        self._end()

    def _failed(self, told: str) -> None:
        self.failures.append(told)

    # ---- clients

    def _ask_at_random(self, number: int) -> None:
        chance = random.Random(f"{self._seed} {number}")
        kinds: list[Callable[[httpx.Client, random.Random], None]] = [
            *[self._complete] * 3,
            *[self._generate] * 3,
            *[self._stream] * 2,
            self._leave_early,
            self._leave_the_line,
            self._load,
            self._unload,
        ]
        with httpx.Client(base_url=self._server.url, timeout=2 * PATIENCE_S) as client:
            while not self._over.is_set():
                kind = chance.choice(kinds)
                self.counts[kind.__name__.strip("_")] += 1
                try:
                    kind(client, chance)
                except Exception as error:  # noqa: BLE001 - a failure of the campaign, told as one
                    self._failed(f"{kind.__name__}: {type(error).__name__}: {error}")

    def _asked(self, chance: random.Random) -> tuple[str, str, int]:
        return chance.choice(NAMES), chance.choice(PROMPTS), chance.choice((SHORT, SHORT, LONG))

    def _completion(self, name: str, prompt: str, num_tokens: int, **more: Any) -> dict[str, Any]:
        asked = {"model": name, "prompt": prompt, "max_tokens": num_tokens, "temperature": 0}
        return asked | {"ignore_eos": True, "return_token_ids": True} | more

    def _complete(self, client: httpx.Client, chance: random.Random) -> None:
        name, prompt, num_tokens = self._asked(chance)
        reply = client.post("/v1/completions", json=self._completion(name, prompt, num_tokens))
        if self._is_answer(name, reply):
            tokens = reply.json()["choices"][0]["token_ids"]
            self._compare(name, prompt, tokens, num_tokens)

    def _compare(self, name: str, prompt: str, tokens: list[int], num_tokens: int) -> None:
        expected = self._oracle.tokens[name, prompt][:num_tokens]
        if tokens != expected:
            self._failed(f"{name} says {tokens} to {prompt!r} instead of {expected}")

    def _is_answer(self, name: str, reply: httpx.Response) -> bool:
        if reply.status_code == 200:
            return True
        self._failed(f"{name}: {reply.status_code} {reply.text[:300]}")
        return False

    def _generate(self, client: httpx.Client, chance: random.Random) -> None:
        name, prompt, num_tokens = self._asked(chance)
        is_stream, keep_alive = chance.random() < 0.5, chance.choice(KEEP_ALIVES)
        body = {"model": name, "prompt": prompt, "raw": True, "stream": is_stream}
        options = {"num_predict": num_tokens, "temperature": 0}
        said = {} if keep_alive is None else {"keep_alive": keep_alive}
        reply = client.post("/api/generate", json=body | said | {"options": options})
        if not self._is_answer(name, reply):
            return
        lines = [json.loads(line) for line in reply.text.splitlines()]
        text, expected = "".join(line["response"] for line in lines), ""
        expected = self._oracle.text(name, prompt, num_tokens)
        if text != expected or not lines[-1]["done"]:
            self._failed(f"{name} says {text!r} to {prompt!r} instead of {expected!r}")

    def _stream(self, client: httpx.Client, chance: random.Random, most: int = LONG) -> None:
        """Of which at most so many tokens are read."""
        name, prompt, _ = self._asked(chance)
        tokens: list[int] = []
        body = self._completion(name, prompt, LONG, stream=True)
        with client.stream("POST", "/v1/completions", json=body) as reply:
            if reply.status_code != 200:
                reply.read()
                self._is_answer(name, reply)
                return
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        self._failed(f"{name}: a stream ended with {event['error']}")
                        return
                    tokens += event["choices"][0]["token_ids"]
                if len(tokens) >= most:
                    break
        self._compare(name, prompt, tokens, len(tokens) if most < LONG else LONG)

    def _leave_early(self, client: httpx.Client, chance: random.Random) -> None:
        self._stream(client, chance, chance.randrange(1, LONG // 2))

    def _leave_the_line(self, client: httpx.Client, chance: random.Random) -> None:
        name, prompt, num_tokens = self._asked(chance)
        body = self._completion(name, prompt, num_tokens)
        with contextlib.suppress(httpx.TimeoutException):
            client.post("/v1/completions", json=body, timeout=chance.choice((0.02, 0.1, 0.4)))

    def _load(self, client: httpx.Client, chance: random.Random) -> None:
        name = chance.choice(NAMES)
        self._is_answer(name, client.post("/models/load", json={"model": name}))

    def _unload(self, client: httpx.Client, chance: random.Random) -> None:
        name = chance.choice(NAMES)
        self._is_answer(name, client.post("/models/unload", json={"model": name}))

    # ---- beside them

    def _watch(self) -> None:
        with httpx.Client(base_url=self._server.url, timeout=2 * PATIENCE_S) as client:
            while not self._over.wait(0.2):
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
            self._failed(f"{sorted(here)} are in memory for two")
        if listed != before:
            self._failed(f"/v1/models tells {listed}, /models {before}")
        if running != {name for name, state in before.items() if state == "loaded"}:
            self._failed(f"/api/ps tells {sorted(running)}, /models {before}")
        if len(workers) > self._most_workers:
            self._failed(f"{sorted(workers)} are more than there is memory for")
        if stray := {worker.partition(".")[0] for worker in workers} - here:
            self._failed(f"{sorted(stray)} have workers and are not in memory: {before}")

    def _kill(self) -> None:
        """Workers of models that serve: one that dies twice before it does cannot be loaded, and says so."""
        chance = random.Random(f"{self._seed} kills")
        with httpx.Client(base_url=self._server.url, timeout=2 * PATIENCE_S) as client:
            while not self._over.wait(KILL_EVERY_S):
                loaded = {name for name, state in states(client).items() if state == "loaded"}
                workers = client.get("/cluster").json()["workers"]
                workers = [one for one in workers if one["id"].partition(".")[0] in loaded]
                if workers:
                    self.counts["kills"] += 1
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(chance.choice(workers)["pid"], signal.SIGKILL)

    def memory_bytes(self) -> int:
        """What all processes of the server have of their own, and their parts of what they share."""
        return sum(map(proportional_bytes, self._server.descendants()))

    # ---- the end

    def _end(self) -> None:
        client = self._server.client
        for name in NAMES:
            client.post("/models/unload", json={"model": name})
        until(lambda: set(states(client).values()) <= {"unloaded", "failed"}, "all have gone")
        cards = client.get("/models").json()["data"]
        if any(card["users"] or card["waiting"] for card in cards):
            self._failed(f"somebody is left: {cards}")
        if not (account := self._server.audit())["balanced"]:
            self._failed(f"the account is not balanced: {account}")
        if workers := self._server.cluster()["workers"]:
            self._failed(f"workers are left: {workers}")


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
        oracle = Oracle(write_models(base))
        (base / "baton.yaml").write_text(CONFIG.replace("BASE", folder))
        with Server("--config", str(base / "baton.yaml")) as server:
            campaign = Campaign(server, oracle, arguments.seed)
            began_bytes, started_s = campaign.memory_bytes(), time.monotonic()
            campaign.run(arguments.seconds, arguments.clients)
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

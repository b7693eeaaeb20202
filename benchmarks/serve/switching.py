"""What models that come, go and sleep cost: seconds to a first token, memory that is kept, and the pace of others meanwhile.

usage: python -m benchmarks.serve.switching --output FILE [--measure loads sleep pace leaks] [--loads 50] [--rounds 5]

One server, the embedded model under two names (`here`, which stays, and `comes`), each with one worker. Memory is Pss, as the
kernel counts it; files are open descriptors. A figure that belongs to a wall clock needs a machine without other work.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks import servers
from benchmarks.environment import environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CONFIG = """
pd: 0p1d
kv-cache-memory: 128MiB
max-loaded-models: 2
memory-budget: 6GiB
keep-alive: -1
models:
  - {model: smollm2-135m, served-model-name: [here]}
  - {model: smollm2-135m, served-model-name: [comes]}
"""
MEASURES = ("loads", "sleep", "pace", "leaks")
PROMPT = "Once upon a time"
PACE_TOKENS = 300
SETTLED_S = 1.0
"""After an unload, when memory is to be back."""
POLL_S = 0.01


class Measured:
    """The server, its processes and what they take."""

    def __init__(self, url: str, pid: int) -> None:
        self.client, self.pid = httpx.Client(base_url=url, timeout=60.0), pid

    def first_token_s(self, model: str) -> float:
        """From sending a request to its first token."""
        started_s = time.perf_counter()
        return next(self.tokens(model, 1)) - started_s

    def tokens(self, model: str, count: int) -> Iterator[float]:
        """When each came."""
        body = {"model": model, "prompt": PROMPT, "max_tokens": count, "stream": True}
        body |= {"ignore_eos": True, "temperature": 0}
        with self.client.stream("POST", "/v1/completions", json=body) as reply:
            reply.raise_for_status()
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    yield time.perf_counter()

    def post(self, path: str, **parts: Any) -> None:
        """Raises httpx.HTTPStatusError."""
        self.client.post(path, **parts).raise_for_status()

    def state(self, model: str) -> str:
        """As GET /models tells it."""
        cards = self.client.get("/models").json()["data"]
        return next(card["status"]["value"] for card in cards if card["id"] == model)

    def unload(self, model: str) -> float:
        """Seconds until it is out."""
        started_s = time.perf_counter()
        self.post("/models/unload", json={"model": model})
        while self.state(model) != "unloaded":
            time.sleep(POLL_S)
        return time.perf_counter() - started_s

    def worker_pid(self, model: str) -> int:
        """Of its only worker."""
        workers = self.client.get("/cluster").json()["models"][model]["workers"]
        return int(workers[0]["pid"])

    def processes(self) -> dict[int, str]:
        """Every process of the server, with what it is."""
        parents = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                stat = (folder / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
        found = [self.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return {pid: _kind(pid) for pid in found}


def _kind(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    names = [word.decode().rpartition(".")[2] for word in words if word.startswith(b"deploy.")]
    return names[0] if names else "launcher"


def pss_bytes(pid: int) -> int:
    """A process's share of what is mapped."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in rollup.splitlines() if line[:4] == "Pss:") << 10


def taken(server: Measured) -> dict[str, Any]:
    """Pss and open files of all processes that are not workers, and what lies in /dev/shm."""
    found = server.processes()
    return {
        "processes": len(found),
        "pss_bytes": {f"{kind} {pid}": pss_bytes(pid) for pid, kind in found.items()},
        "files": sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in found),
        "shm_files": len(list(Path("/dev/shm").iterdir())),
    }


def total(account: dict[str, Any]) -> int:
    """Pss of all."""
    return sum(account["pss_bytes"].values())


def loads(server: Measured, rounds: int) -> dict[str, Any]:
    """Of a model that is out, its file in the page cache: a request's first token, and the same when it is in."""
    cold, warm, out = [], [], []
    for _ in range(rounds):
        cold.append(server.first_token_s("comes"))
        warm.append(server.first_token_s("comes"))
        out.append(server.unload("comes"))
    return {"first_token_s": cold, "first_token_when_loaded_s": warm, "unload_s": out}


def leaks(server: Measured, count: int) -> dict[str, Any]:
    """What is left after many loads, and one second after each unload of the last ones."""
    before = taken(server)
    for _ in range(count):
        server.first_token_s("comes")
        server.unload("comes")
    time.sleep(SETTLED_S)
    after = taken(server)
    return {
        "loads": count,
        "before": before,
        "after": after,
        "kept_ratio": total(after) / total(before) - 1.0,
    }


def pace(server: Measured) -> dict[str, Any]:
    """Time between the tokens of one answer, alone and while the other model comes and goes."""
    alone = gaps(list(server.tokens("here", PACE_TOKENS)))
    over, counts = threading.Event(), [0]

    def switch() -> None:
        with httpx.Client(base_url=server.client.base_url, timeout=60.0) as client:
            other = Measured(str(server.client.base_url), server.pid)
            other.client = client
            while not over.is_set():
                other.first_token_s("comes")
                other.unload("comes")
                counts[0] += 1

    thread = threading.Thread(target=switch)
    thread.start()
    beside = gaps(list(server.tokens("here", PACE_TOKENS)))
    over.set()
    thread.join()
    return {
        "alone": alone,
        "beside_loads": beside | {"loads": counts[0]},
        "p99_ratio": beside["p99_s"] / alone["p99_s"],
        "p50_ratio": beside["p50_s"] / alone["p50_s"],
    }


def gaps(times: Sequence[float]) -> dict[str, float]:
    """Of tokens that came then."""
    between = sorted(later - sooner for sooner, later in pairwise(times))
    quantiles = statistics.quantiles(between, n=100)
    return {"p50_s": quantiles[49], "p99_s": quantiles[98], "max_s": between[-1]}


def sleeps(server: Measured, rounds: int) -> dict[str, Any]:
    """What a worker takes awake and asleep, and a request's first token when it wakes it."""
    server.first_token_s("here")
    pid, found = server.worker_pid("here"), {}
    for level in (1, 2):
        awake, asleep, falls, wakes = [], [], [], []
        for _ in range(rounds):
            awake.append(pss_bytes(pid))
            started_s = time.perf_counter()
            server.post("/sleep", params={"level": level, "model": "here"})
            falls.append(time.perf_counter() - started_s)
            asleep.append(pss_bytes(pid))
            wakes.append(server.first_token_s("here"))
        found[f"level_{level}"] = {
            "awake_pss_bytes": awake,
            "asleep_pss_bytes": asleep,
            "awake_again_pss_bytes": pss_bytes(pid),
            "sleep_s": falls,
            "first_token_s": wakes,
        }
    return found | {
        "first_token_when_awake_s": [server.first_token_s("here") for _ in range(rounds)]
    }


def measure(output: Path, wanted: Sequence[str], count: int, rounds: int) -> None:
    """One server; what was measured before stays in the file."""
    result: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
    command = f"python -m benchmarks.serve.switching --measure {' '.join(wanted)} --loads {count} --rounds {rounds}"
    told = {"environment": environment(), "command": command}
    with tempfile.TemporaryDirectory() as name:
        config = Path(name, "baton.yaml")
        config.write_text(CONFIG)
        port = servers.free_port()
        words = [sys.executable, "-m", "baton_serve", "serve", "--config", str(config)]
        process = servers.start([*words, "--port", str(port)], Path(name, "log"))
        try:
            servers.await_ready(f"http://127.0.0.1:{port}", process)
            server = Measured(f"http://127.0.0.1:{port}", process.pid)
            server.first_token_s("here")
            loads(server, 2)
            measures = {
                "loads": lambda: loads(server, rounds),
                "sleep": lambda: sleeps(server, rounds),
                "pace": lambda: pace(server),
                "leaks": lambda: leaks(server, count),
            }
            for one in wanted:
                result[one] = told | measures[one]()
        finally:
            servers.end(process)
    output.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    """As the usage says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--measure", nargs="+", choices=MEASURES, default=MEASURES)
    parser.add_argument("--loads", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    measure(given.output, given.measure, given.loads, given.rounds)


if __name__ == "__main__":
    main()

"""Do `baton bench serve` and `vllm bench serve` measure the same? Owns running both on the same servers in turn.

usage: python -m benchmarks.peers.client_agreement [--peers-home DIR] [--repeats 3] [--only metronome|baton] [--append] [--out FILE]

Two servers: `benchmarks.peers.metronome`, whose timing is known, and `baton serve`. Each repeat runs both clients with the
same flags and seed, hence with the same arrival times; the order changes each time. A figure is its median over the repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.environment import environment
from benchmarks.servers import await_ready, end, start

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
OUT = ROOT / "benchmarks" / "results" / "client-agreement.json"
BATON_PORT, METRONOME_PORT = 8201, 8202
TTFT_MS, ITL_MS = 50, 10
WIDEST = 0.05
OWN = {
    "mean_ttft_ms": "vllm:time_to_first_token_seconds",
    "mean_itl_ms": "vllm:inter_token_latency_seconds",
    "mean_e2el_ms": "vllm:e2e_request_latency_seconds",
}
"""Means that Baton measures of itself."""
LOAD = (
    *("--backend", "openai", "--dataset-name", "random", "--random-input-len", "128"),
    *("--random-output-len", "32", "--num-prompts", "40", "--request-rate", "2"),
    *("--temperature", "0", "--disable-tqdm", "--percentile-metrics", "ttft,tpot,itl,e2el"),
    *("--metric-percentiles", "50,90,99", "--goodput", "ttft:60000", "--save-result"),
)
WORDS = ("mean", "median", "p50", "p90", "p99")
FIGURES = (
    *("duration", "completed", "total_input_tokens", "total_output_tokens", "request_throughput"),
    *("request_goodput", "output_throughput", "total_token_throughput"),
    *("max_output_tokens_per_s", "max_concurrent_requests"),
    *(f"{word}_{name}_ms" for name in ("ttft", "tpot", "itl", "e2el") for word in WORDS),
)


@contextmanager
def baton(logs: Path) -> Iterator[tuple[str, str]]:
    """(URL, model) of a Baton server of our own."""
    url = f"http://127.0.0.1:{BATON_PORT}"
    command = [sys.executable, "-m", "deploy.cli", "serve", "--port", str(BATON_PORT)]
    process = start(command, logs / "baton.log")
    try:
        await_ready(url, process)
        warm_up(url)
        yield url, "smollm2-135m"
    finally:
        end(process)


@contextmanager
def metronome(_: Path) -> Iterator[tuple[str, str]]:
    """(URL, model) of a server that answers at known times."""
    flags = ["--port", METRONOME_PORT, "--ttft-ms", TTFT_MS, "--itl-ms", ITL_MS]
    command = [sys.executable, "-m", "benchmarks.peers.metronome", *map(str, flags)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield f"http://127.0.0.1:{METRONOME_PORT}", "metronome"
        finally:
            process.kill()


SERVERS = {"metronome": metronome, "baton": baton}


def warm_up(url: str) -> None:
    """A few requests that nobody measures: a fresh server is slower at first."""
    flags = ["--url", url, "--num-prompts", "8", "--random-input-len", "128"]
    flags += ["--random-output-len", "32", "--request-rate", "4", "--seed", "1000"]
    command = [sys.executable, "-m", "deploy.cli", "bench", "serve", *flags]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def client_command(client: str, url: str, model: str, home: Path, seed: int) -> list[str]:
    """The command line of one client."""
    if client == "vllm":
        program = [str(home / "venv/bin/vllm"), "bench", "serve", "--ready-check-timeout-sec", "0"]
    else:  # the other client knows no token ids, so like is compared with like
        program = [sys.executable, "-m", "deploy.cli", "bench", "serve", "--prompt-format", "text"]
    server = ["--base-url", url, "--model", model, "--tokenizer", str(home / "smollm2-hf")]
    return [*program, *server, *LOAD, "--seed", str(seed)]


def measure(command: list[str], directory: Path) -> dict[str, Any]:
    """The result file of one run."""
    where = ["--result-dir", str(directory), "--result-filename", "result.json"]
    done = subprocess.run(
        [*command, *where], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads((directory / "result.json").read_text(encoding="utf-8"))
    return result


def compare(name: str, home: Path, seeds: list[int], before: dict[str, Any]) -> dict[str, Any]:
    """Both clients on one server, once a seed, and what was found `before` with others."""
    runs: dict[str, list[dict[str, Any]]] = {"baton": [], "vllm": []}
    known = {entry["figure"]: entry["each"] for entry in before.get("figures", [])}
    with tempfile.TemporaryDirectory() as temporary, SERVERS[name](Path(temporary)) as (url, model):
        for seed in seeds:
            order = ("baton", "vllm") if seed % 2 == 0 else ("vllm", "baton")
            for client in order:
                command = client_command(client, url, model, home, seed)
                earlier = account(url) if name == "baton" else {}
                run = measure(command, Path(temporary))
                told = means(earlier, account(url)) if earlier else {}
                runs[client].append({**run, "server": told})
        commands = {
            client: " ".join(client_command(client, url, model, home, seeds[0])) for client in runs
        }
    rows = [row(figure, runs, known.get(figure, {})) for figure in FIGURES]
    return {
        "server": name,
        "commands": commands,
        "seeds": before.get("seeds", []) + seeds,
        "figures": rows,
        "widest_difference": max(abs(entry["ratio"] - 1) for entry in rows),
        "against_the_server": against_the_server(runs) if name == "baton" else {},
        "client": before.get("client", []) + [run["client"] for run in runs["baton"]],
    }


def account(url: str) -> dict[str, tuple[float, float]]:
    """Sum and number of what the server itself has measured so far, by figure."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
        families = text_string_to_metric_families(reply.read().decode())
    values: dict[str, float] = defaultdict(float)
    for family in families:
        for sample in family.samples:
            values[sample.name] += sample.value
    return {
        figure: (values[f"{name}_sum"], values[f"{name}_count"]) for figure, name in OWN.items()
    }


def means(
    earlier: dict[str, tuple[float, float]], later: dict[str, tuple[float, float]]
) -> dict[str, float]:
    """The server's own means in between, in ms."""
    return {
        figure: 1000
        * (later[figure][0] - earlier[figure][0])
        / (later[figure][1] - earlier[figure][1])
        for figure in OWN
    }


def against_the_server(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, list[float]]]:
    """Each run's means over what the server measured in that run. Where two clients differ and these do not, it was
    the server that was slower."""
    return {
        figure: {
            c: [run[figure] / run["server"][figure] for run in found] for c, found in runs.items()
        }
        for figure in OWN
    }


def row(
    figure: str, runs: dict[str, list[dict[str, Any]]], known: dict[str, list[float]]
) -> dict[str, Any]:
    """One figure of both clients: medians of the repeats, their ratio, and each repeat."""
    each = {
        client: known.get(client, []) + [run[figure] for run in found]
        for client, found in runs.items()
    }
    ours, theirs = statistics.median(each["baton"]), statistics.median(each["vllm"])
    return {"figure": figure, "baton": ours, "vllm": theirs, "ratio": ours / theirs, "each": each}


def show(comparison: dict[str, Any]) -> None:
    """The table of one server."""
    print(f"{comparison['server']}: seeds {comparison['seeds']}")
    for entry in comparison["figures"]:
        far = "  <- apart" if abs(entry["ratio"] - 1) > WIDEST else ""
        figures = f"{entry['baton']:12.3f}{entry['vllm']:12.3f}{entry['ratio']:9.3f}"
        print(f"  {entry['figure']:<26}{figures}{far}")
    for figure, clients in comparison["against_the_server"].items():
        ratios = {client: [round(ratio, 3) for ratio in found] for client, found in clients.items()}
        print(f"  {figure} over the server's own: {ratios}")


def main() -> int:
    """0 when every figure agrees within 5 %."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--peers-home", type=Path, default=Path.home() / ".cache/baton-peers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", choices=list(SERVERS))
    parser.add_argument("--append", action="store_true", help="add repeats to those in --out")
    parser.add_argument("--out", type=Path, default=OUT)
    flags = parser.parse_args()
    names = [flags.only] if flags.only else list(SERVERS)
    stamp = environment()
    kept = json.loads(flags.out.read_text(encoding="utf-8")) if flags.out.is_file() else {}
    servers = {entry["server"]: entry for entry in kept.get("servers", [])}
    seeds = list(range(flags.seed, flags.seed + flags.repeats))
    found = []
    for name in names:
        before = servers.get(name, {}) if flags.append else {}
        found.append(compare(name, flags.peers_home, seeds, before))
        show(found[-1])
    servers |= {entry["server"]: {**entry, "environment": stamp} for entry in found}
    document = {
        "command": "python -m benchmarks.peers.client_agreement",
        "clients": {"baton": "baton bench serve", "vllm": "vllm bench serve"},
        "servers": list(servers.values()),
    }
    flags.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return int(any(entry["widest_difference"] > WIDEST for entry in found))


if __name__ == "__main__":
    sys.exit(main())

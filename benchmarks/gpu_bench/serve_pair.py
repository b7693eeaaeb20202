"""1P1D on one GPU against one colocated worker on the same GPU, over HTTP, at a low and a high load.

usage: python -m benchmarks.gpu_bench.serve_pair [--shape llama-8b] [--pools 0p1d,1p1d]
           [--loads 2:2048:128,8:2048:128,inf:512:128]      requests a second, prompt tokens, output tokens
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.gpu_bench.model_directory import write_directory
from benchmarks.gpu_bench.shapes import SHAPES

LOADS = "2:2048:128,8:2048:128,inf:512:128"
BURST = 64
"""Requests at once where the rate is inf."""
KEYS = (
    "median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "median_itl_ms", "p99_itl_ms",
    "output_throughput", "total_token_throughput", "request_throughput", "completed", "duration",
)  # fmt: skip
READY_WITHIN_S = 120.0


class GpuServer:
    """`baton serve` with random weights; ended by SIGINT."""

    def __init__(self, model: Path, pools: str, log: Path, *more: str) -> None:
        self._log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "deploy.cli", "serve", str(model), "--pd", pools, "--port", "0"),
                    *("--load-format", "dummy", "--device", "cuda", "--max-model-len", "8192", *more),
                ],
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.url = self._await_url()

    def log(self) -> str:
        """What it said."""
        return self._log.read_text()

    def _await_url(self) -> str:
        started = time.perf_counter()
        while (found := re.search(r"(http://127\.0\.0\.1:\d+)/v1", self.log())) is None:
            if self.process.poll() is not None or time.perf_counter() - started > READY_WITHIN_S:
                raise RuntimeError(f"the server did not start:\n{self.log()[-3000:]}")
            time.sleep(0.1)
        return found[1]

    def close(self) -> None:
        """End it and wait."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Load(NamedTuple):
    """Requests a second, as `baton bench serve` takes it; tokens in and out; how many requests."""

    rate: str
    input_tokens: int
    output_tokens: int
    prompts: int

    @classmethod
    def parse(cls, text: str, seconds: float) -> Load:
        """`2:2048:128`, for about so many seconds."""
        rate, input_tokens, output_tokens = text.split(":")
        prompts = BURST if rate == "inf" else max(8, int(float(rate) * seconds))
        return cls(rate, int(input_tokens), int(output_tokens), prompts)


def run_load(server: GpuServer, model: Path, directory: Path, load: Load) -> dict[str, Any]:
    """One run of `baton bench serve`."""
    output = directory / "run.json"
    subprocess.run(
        [
            *(sys.executable, "-m", "deploy.cli", "bench", "serve", "--url", server.url),
            *("--tokenizer", str(model), "--dataset-name", "random", "--seed", "3", "--ignore-eos"),
            *("--random-input-len", str(load.input_tokens), "--random-output-len", str(load.output_tokens)),
            *("--num-prompts", str(load.prompts), "--request-rate", load.rate, "--output", str(output)),
            *("--num-warmups", "2", "--disable-tqdm", "--max-client-share", "1", "--save-detailed"),
        ],
        check=True, stdout=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    found = json.loads(output.read_text())
    told = {key: found.get(key) for key in KEYS}
    told["first_gap_ms"] = first_gap_ms(found.get("itls") or [])
    return told


def first_gap_ms(gaps: list[list[float]]) -> float | None:
    """How much longer the second token takes than a later one does, in the median over requests; `gaps` in seconds.
    With two pools this is the handover."""
    extra = [1000 * (own[0] - median(own[1:])) for own in gaps if len(own) > 2]
    return median(extra) if extra else None


def measure(shape: str, pools: list[str], loads: list[Load]) -> list[dict[str, Any]]:
    """A row for each shape of the pools and each load."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        directory, model = Path(name), Path(name) / shape
        model.mkdir()
        write_directory(SHAPES[shape], model)
        for shape_of_pools in pools:
            server = GpuServer(model, shape_of_pools, directory / "log")
            try:
                for load in loads:
                    found = run_load(server, model, directory, load)
                    rows.append({"pools": shape_of_pools, **load._asdict(), **found})
                    print(json.dumps(rows[-1]), flush=True)
            except (subprocess.SubprocessError, OSError, ValueError) as error:
                print(f"{shape_of_pools}: {error}\n{server.log()[-3000:]}", flush=True)
                rows.append({"pools": shape_of_pools, "error": f"{error}"})
            finally:
                server.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="llama-8b")
    parser.add_argument("--pools", default="0p1d,1p1d")
    parser.add_argument("--loads", default=LOADS)
    parser.add_argument("--seconds", type=float, default=15.0)
    arguments = parser.parse_args()
    loads = [Load.parse(text, arguments.seconds) for text in arguments.loads.split(",")]
    measure(arguments.shape, arguments.pools.split(","), loads)


if __name__ == "__main__":
    main()

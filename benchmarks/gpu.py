"""Everything that Baton says of GPUs, checked and timed by one script, on whatever card is there.

usage: python -m benchmarks.gpu [--shapes llama-8b,qwen3-8b] [--parts steps,pull,serve,transformers] [--output FILE]

Each part is a process of its own, so that one that fails, or takes too long, is reported and the others go on. The last
line is JSON: the environment, and what each part found. `pytest tests/gpu tests/unit/engine/cuda/test_cuda_kernels.py` checks the
numbers' meaning: kernels and runner against torch and transformers, 1p1d against 0p1d, the transport's conformance.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_bench.shapes import SHAPES

PARTS = {
    "steps": ("benchmarks.gpu_bench.step_times", 90.0),
    "pull": ("benchmarks.gpu_bench.pull", 60.0),
    "serve": ("benchmarks.gpu_bench.serve_pair", 300.0),
    "transformers": ("benchmarks.gpu_bench.transformers_batching", 180.0),
}
"""Module and time limit in seconds."""
SHAPED = ("steps", "serve", "transformers")


def run_part(part: str, *arguments: str) -> list[Any]:
    """The JSON lines that the part printed; what else it said goes on to the terminal."""
    module, limit_s = PARTS[part]
    command = [sys.executable, "-m", module, *arguments]
    lines: list[Any] = []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
        output, status = done.stdout, done.returncode
        error = done.stderr[-2000:] if status else ""
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout.decode() if isinstance(expired.stdout, bytes) else ""
        status, error = -1, f"took longer than {limit_s:g} s"
    for line in output.splitlines():
        if line.startswith("{"):
            lines.append(json.loads(line))
        print(line, flush=True)
    if status:
        print(f"{part}: ended with {status}: {error}", flush=True)
        lines.append({"error": error or f"ended with {status}"})
    return lines


def environment() -> dict[str, Any]:
    """Versions and the card, by a process of its own: this one takes nothing on the GPU."""
    code = (
        "import json, platform, torch, triton; print(json.dumps({'gpu': torch.cuda.get_device_name(), "
        "'torch': torch.__version__, 'triton': triton.__version__, 'python': platform.python_version()}))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def main() -> int:
    """Exit status 1 when a part failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    started = time.perf_counter()
    result: dict[str, Any] = {"command": sys.argv[1:], "environment": environment()}
    for part in arguments.parts.split(","):
        for shape in arguments.shapes.split(",") if part in SHAPED else [""]:
            flags = ("--shape", shape) if shape else ()
            result[f"{part} {shape}".strip()] = run_part(part, *flags)
    result["seconds"] = time.perf_counter() - started
    line = json.dumps(result)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(line)
    return int('"error"' in line)


if __name__ == "__main__":
    sys.exit(main())

"""`baton bench engine`: how fast the engine's steps are, without HTTP, and which share of the machine's limits that is.

Tokens per second of prefill by prompt length and of decode by batch and context; memory bandwidth and
matrix products are measured in the same run, in the same process, on the same cores. Prints two tables
and ends with one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks.engine.spec import EngineSpec
from benchmarks.environment import environment
from deploy.config.parser import Parser, typed
from deploy.config.topology import cache_directory, child_environment
from deploy.config.values import quantization, whole
from deploy.host.affinity import allowed_cores
from deploy.host.model_source import prepare, resolve_dtype
from protocol.errors import BatonError, ConfigError
from protocol.quantization import Quantization

if TYPE_CHECKING:
    import argparse

ROOT = Path(__file__).parents[2]


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="baton bench engine", description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="as for baton serve")
    parser.add_argument(
        "--random", type=Path, metavar="CONFIG", help="a config.json: random weights of that shape"
    )
    parser.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--backend", default="auto", help="auto, cpu or torch")
    parser.add_argument(
        "--quantization",
        type=typed(quantization),
        default="none",
        help="none, or int8 as for baton serve",
    )
    parser.add_argument(
        "--threads", type=typed(whole(1, 4096)), help="cores (default: half of those allowed)"
    )
    parser.add_argument(
        "--lent-cores",
        type=typed(whole(0, 4096)),
        default=0,
        help="so many more help, as those of a worker that sleeps",
    )
    parser.add_argument("--prompts", type=typed(_numbers), default=(128, 512, 2048))
    parser.add_argument("--batches", type=typed(_numbers), default=(1, 4, 8, 16))
    parser.add_argument("--contexts", type=typed(_numbers), default=(128, 512, 1024))
    parser.add_argument(
        "--chunk", type=typed(whole(1, 1 << 20)), default=512, help="prompt tokens in a step"
    )
    parser.add_argument(
        "--steps", type=typed(whole(1, 10_000)), default=15, help="decode steps of each case"
    )
    parser.add_argument(
        "--repeats", type=typed(whole(1, 10_000)), default=3, help="prompts of each length"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON there too")
    return parser.parse_args(argv)


def _numbers(text: str) -> tuple[int, ...]:
    """`128,512` as numbers."""
    return tuple(whole(1, 1 << 20)(part) for part in text.split(","))


def _random_directory(config: Path, dtype: str, stack: ExitStack) -> str:
    directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="baton-random-"))
    command = [sys.executable, "-m", "benchmarks.random_model", str(config), dtype, directory]
    if subprocess.run(command, cwd=ROOT, env=child_environment(), check=False).returncode != 0:
        raise ConfigError(f"--random: {config} is not a config.json of a supported model")
    return directory


def _measure(spec: EngineSpec) -> dict[str, Any]:
    """Run benchmarks.engine.steps, pinned like a worker."""
    os.sched_setaffinity(0, allowed_cores()[: spec.threads])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.engine.steps", msgspec.json.encode(spec).decode()],
        cwd=ROOT,
        env=child_environment(spec.threads),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BatonError(f"the measuring process ended with status {done.returncode}; see above")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def show(report: dict[str, Any]) -> None:
    """Limits and both tables."""
    limits = report["limits"]
    gemm = ", ".join(f"{name} {value:.0f}" for name, value in limits["gemm_gflops"].items())
    print(
        f"{report['model']} · {report['dtype']} · {report['threads']} threads, "
        f"{report['lent_cores']} lent cores · {report['backend']}"
    )
    print(
        f"limits: read {limits['read_gb_per_s']:.1f} GB/s, copy {limits['copy_gb_per_s']:.1f} GB/s, "
        f"matrix products {gemm} GFLOP/s"
    )
    _table(report["prefill"], ("prompt_tokens", "tokens_per_s", "ms", "limit_ms", "of_limit"))
    names = ("context_tokens", "batch", "tokens_per_s", "step_ms", "limit_ms", "of_limit")
    _table(report["decode"], (*names, "bound_by"))


def _table(entries: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    print("\n" + "".join(f"{name:>15}" for name in names))
    for entry in entries:
        print("".join(f"{entry[name]:>15}" for name in names))


def main(argv: list[str]) -> int:
    """Measure and print; ConfigError for what cannot be measured."""
    arguments = _arguments(argv)
    threads = arguments.threads or max(1, len(allowed_cores()) // 2)
    cores = allowed_cores()
    if threads > len(cores):
        raise ConfigError(f"--threads: {threads} is more than the {len(cores)} cores")
    lent = cores[threads : threads + arguments.lent_cores]
    if len(lent) != arguments.lent_cores:
        raise ConfigError(f"--lent-cores: {len(cores) - threads} of {len(cores)} cores are left")
    dtype = resolve_dtype(arguments.dtype)
    with ExitStack() as stack:
        if arguments.random is not None:
            name, directory = (
                f"random {arguments.random}",
                _random_directory(arguments.random, dtype, stack),
            )
        else:
            model = prepare(arguments.model, (), dtype, cache_directory(), lambda *_: None)
            name, directory = model.name, model.directory
        spec = EngineSpec(
            directory=directory,
            kernel_cache=str(cache_directory() / "kernels"),
            threads=threads,
            lent_cores=lent,
            quantization=Quantization(arguments.quantization),
            **{
                name: getattr(arguments, name)
                for name in (
                    "backend",
                    "prompts",
                    "batches",
                    "contexts",
                    "chunk",
                    "steps",
                    "repeats",
                )
            },
        )
        report = {
            "model": name,
            "threads": threads,
            "lent_cores": len(lent),
            **_measure(spec),
            "host": environment(),
        }
    show(report)
    line = json.dumps(report)
    if arguments.output is not None:
        arguments.output.write_text(line + "\n", encoding="utf-8")
    print(f"\n{line}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

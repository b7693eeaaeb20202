"""What `--quantization int8` wins and what it costs: processor time of steps, and perplexity, against the model's own matrices.

usage: python -m benchmarks.engine.quantized [MODEL] [--texts FILE …] [--output FILE]

Both models are in one process and take turns, on one thread, and the time is that thread's own, so that other work on
the machine disturbs both alike. The text is Python's language reference, which comes with Python (`pydoc_data`), and
whatever files are named. Prints lines of figures, and ends with one line of JSON.
"""

from __future__ import annotations

import json
import math
import pydoc_data.topics
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from benchmarks.engine.spec import EngineSpec
from benchmarks.engine.steps import Engine
from benchmarks.environment import environment
from deploy.config.parser import Parser, typed
from deploy.config.topology import cache_directory
from deploy.config.values import whole
from deploy.host.model_source import prepare, resolve_dtype
from engine.kv.sequence import Scheduled, Sequence
from protocol.quantization import Quantization
from protocol.sampling import SamplingParams

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

BATCHES, PROMPTS, CONTEXT = (1, 8, 32), (512,), 576
WINDOW, CHUNK = 1024, 512
"""Tokens of a text that are scored together, and of them in one step."""
LANGUAGE_REFERENCE = "python language reference"


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.engine.quantized", description=(__doc__ or "").split("\n\n")[0]
    )
    count = typed(whole(1, 1 << 20))
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="as for baton serve")
    parser.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--texts", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--tokens", type=count, default=16384, help="of each text, at most")
    parser.add_argument("--repeats", type=count, default=30, help="steps of each kind")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON there too")
    return parser.parse_args(argv)


def engines_of(arguments: argparse.Namespace) -> dict[str, Engine]:
    """Both, over the same prepared directory."""
    dtype = resolve_dtype(arguments.dtype)
    model = prepare(arguments.model, (), dtype, cache_directory(), lambda *_: None)
    spec = EngineSpec(
        directory=model.directory,
        kernel_cache=str(cache_directory() / "kernels"),
        prompts=(WINDOW, *PROMPTS),
        batches=BATCHES,
        contexts=(CONTEXT,),
    )
    kinds = {dtype: Quantization.NONE, Quantization.INT8.value: Quantization.INT8}
    return {
        name: Engine(EngineSpec(**{**_fields(spec), "quantization": kind}))
        for name, kind in kinds.items()
    }


def _fields(spec: EngineSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__struct_fields__}


def timed(
    engines: dict[str, Engine], make: Callable[[Engine], list[Scheduled]], repeats: int
) -> dict[str, Any]:
    """Milliseconds of the thread for the same step of each, in turn."""
    steps = {name: make(engine) for name, engine in engines.items()}
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(repeats):
        for name, engine in engines.items():
            start_s = time.thread_time()
            engine.runner.execute(steps[name])
            times[name].append((time.thread_time() - start_s) * 1e3)
    for step in (step for own in steps.values() for step in own):
        step.sequence.hold.release()
    medians = {name: statistics.median(found) for name, found in times.items()}
    own, quantized = medians.values()
    best = {name: round(min(found), 2) for name, found in times.items()}
    return {
        "median_ms": {name: round(ms, 2) for name, ms in medians.items()},
        "best_ms": best,
        "ratio": round(quantized / own, 3),
    }


def decode_step(engine: Engine, batch: int) -> list[Scheduled]:
    """`batch` answers with CONTEXT tokens behind them."""
    sequences = [engine.sequence(f"decode-{i}", CONTEXT + 1, 1) for i in range(batch)]
    for sequence in sequences:
        sequence.num_computed_tokens = CONTEXT
    return [Scheduled(sequence, 1) for sequence in sequences]


def prefill_step(engine: Engine, tokens: int) -> list[Scheduled]:
    """A whole prompt."""
    return [Scheduled(engine.sequence("prefill", tokens, 1), tokens)]


def windows_of(engine: Engine, text: str, most: int) -> list[list[int]]:
    """Its first tokens, in whole windows."""
    path = Path(engine.spec.directory, "tokenizer.json")
    ids = (
        tokenizers.Tokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids[:most]
    )
    return [ids[start : start + WINDOW] for start in range(0, len(ids) - WINDOW + 1, WINDOW)]


def scored(engine: Engine, window: list[int]) -> list[tuple[float, int]]:
    """Of every token but the first: its log-probability, and which one was likeliest in its place."""
    hold = engine.pool.allocate(-(-len(window) // engine.spec.block_size), "window")
    assert hold is not None, "the pool was sized for every case"
    asked = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
    sequence = Sequence("window", 0, list(window), len(window), asked, b"", hold)
    while sequence.num_computed_tokens < len(window):
        step = Scheduled(sequence, min(CHUNK, len(window) - sequence.num_computed_tokens))
        engine.runner.execute([step])
        sequence.num_computed_tokens += step.num_tokens
    hold.release()
    return [(score.logprob, score.top[0][0]) for score in sequence.scores]


def perplexity(engines: dict[str, Engine], text: str, most: int) -> dict[str, Any]:
    """Of both on the same windows, and how often the same token is the likeliest."""
    windows = windows_of(next(iter(engines.values())), text, most)
    found = {
        name: [score for window in windows for score in scored(engine, window)]
        for name, engine in engines.items()
    }
    values = {name: math.exp(-statistics.fmean(p for p, _ in all_)) for name, all_ in found.items()}
    own, quantized = values.values()
    pairs = list(zip(*found.values(), strict=True))
    same = statistics.fmean(one[1] == other[1] for one, other in pairs)
    return {
        "tokens": len(pairs),
        "perplexity": {name: round(value, 4) for name, value in values.items()},
        "more": round(quantized / own - 1, 5),
        "same_likeliest": round(same, 4),
    }


def main(argv: list[str]) -> int:
    """Measure and print."""
    arguments = _arguments(argv)
    texts = {
        LANGUAGE_REFERENCE: "\n".join(
            pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)
        )
    }
    texts |= {path.name: path.read_text(encoding="utf-8") for path in arguments.texts}
    engines = engines_of(arguments)
    report: dict[str, Any] = {
        "model": arguments.model,
        "backends": {name: engine.runner.backend for name, engine in engines.items()},
        "texts": {
            name: perplexity(engines, text, arguments.tokens) for name, text in texts.items()
        },
        "decode": {},
        "prefill": {},
    }
    for name, found in report["texts"].items():
        print(f"{name}: {found}", flush=True)
    for batch in BATCHES:
        found = timed(engines, partial(decode_step, batch=batch), arguments.repeats)
        report["decode"][batch] = found
        print(f"decode, {batch} rows: {found}", flush=True)
    for tokens in PROMPTS:
        found = timed(engines, partial(prefill_step, tokens=tokens), arguments.repeats)
        report["prefill"][tokens] = found
        print(f"prefill, {tokens} tokens: {found}", flush=True)
    report["host"] = environment()
    line = json.dumps(report)
    if arguments.output is not None:
        arguments.output.write_text(line + "\n", encoding="utf-8")
    print(f"\n{line}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

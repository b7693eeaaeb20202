"""A small vocabulary, and runs whose figures are known."""

from __future__ import annotations

import pytest

from benchmarks.serve.answer import Outcome
from benchmarks.serve.arguments import parse
from benchmarks.serve.load import Run
from benchmarks.serve.overhead import Overhead
from benchmarks.serve.pools import PoolWatch, Sample
from benchmarks.serve.result import Measured, make_result
from benchmarks.serve.vocabulary import Vocabulary
from coordinator.edge.text.tokenizer import TextTokenizer
from tests.unit.coordinator.edge.conftest import build_tokenizer


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary(TextTokenizer(build_tokenizer().to_str().encode()))


OVERHEAD = Overhead(
    cpu_share=0.02,
    wait_share=0.001,
    median_lag_ms=0.05,
    p99_lag_ms=0.2,
    max_lag_ms=0.9,
    p99_late_ms=1.1,
    cpu_ms_per_request=2.0,
)


def outcome(start_s: float, error: str = "") -> Outcome:
    return Outcome(
        start_s=start_s,
        ttft_s=0.1,
        latency_s=0.3,
        gaps_s=[0.1, 0.1],
        num_prompt_tokens=10,
        num_output_tokens=3,
        text="a b c",
        error=error,
    )


def measured(*flags: str, name: str = "one", errors: tuple[str, ...] = ("", "")) -> Measured:
    """Two requests in two seconds on a server with two pools."""
    outcomes = [outcome(100.0 + number, error) for number, error in enumerate(errors)]
    samples = [
        Sample(100.0, {"prefill": 0, "decode": 0}, {"prefill": 1, "decode": 1}),
        Sample(102.0, {"prefill": 20, "decode": 4}, {"prefill": 1, "decode": 1}),
    ]
    run = Run(outcomes, 100.0, 2.0, OVERHEAD)
    parsed = parse(flags)
    one = Measured(
        name, "http://x:1", "smol", parsed.request_rate, False, run, PoolWatch(samples=samples)
    )
    one.result = make_result(one, parsed)
    return one

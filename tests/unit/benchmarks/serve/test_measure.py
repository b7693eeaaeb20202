"""Definitions against numbers worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks.serve.answer import Outcome
from benchmarks.serve.measure import attainment, is_within, ratios, summary

SLO = {"ttft": 150.0, "tpot": 100.0}
OUTCOMES = [
    Outcome(
        start_s=100.0,
        ttft_s=0.1,
        latency_s=0.5,
        gaps_s=[0.1, 0.3],
        num_prompt_tokens=10,
        num_output_tokens=5,
    ),
    Outcome(
        start_s=100.2,
        ttft_s=0.3,
        latency_s=1.3,
        gaps_s=[0.2, 0.8],
        num_prompt_tokens=20,
        num_output_tokens=3,
        queue_s=0.4,
    ),
    Outcome(start_s=101.5, ttft_s=0.2, latency_s=0.2, num_prompt_tokens=30, num_output_tokens=1),
    Outcome(start_s=102.0, error="HTTP 500: no"),
]
FIGURES = summary(OUTCOMES, 4.0, [50.0, 99.0, 99.9], SLO)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("completed", 3),
        ("failed", 1),
        ("duration", 4.0),
        ("total_input_tokens", 60),
        ("total_output_tokens", 9),
        ("request_throughput", 0.75),
        ("output_throughput", 2.25),
        ("total_token_throughput", 17.25),
        ("request_goodput", 0.25),
        ("mean_ttft_ms", 200.0),
        ("median_ttft_ms", 200.0),
        ("std_ttft_ms", 81.6497),
        ("p99_ttft_ms", 298.0),
        ("p99.9_ttft_ms", 299.8),
        ("mean_tpot_ms", 300.0),
        ("median_itl_ms", 250.0),
        ("mean_itl_ms", 350.0),
        ("p50_e2el_ms", 500.0),
        ("mean_e2el_including_client_queue_ms", 800.0),
        ("max_output_tokens_per_s", 5.0),
        ("max_concurrent_requests", 2),
    ],
)
def test_figure(key: str, value: float) -> None:
    assert FIGURES[key] == pytest.approx(value, rel=1e-4)


def test_one_token_is_within_any_tpot() -> None:
    assert is_within(OUTCOMES[2], {"tpot": 0.0})


def test_a_limit_itself_is_within() -> None:
    assert is_within(Outcome(latency_s=0.5), {"e2el": 500.0})


def test_failed_requests_count_against_attainment() -> None:
    assert attainment(OUTCOMES, {"e2el": 10_000.0}) == 0.75


def test_without_an_slo_there_is_no_goodput() -> None:
    assert summary(OUTCOMES, 4.0, [99.0], {})["request_goodput"] is None


def test_a_run_in_which_all_failed_has_figures_of_zero() -> None:
    assert summary(OUTCOMES[3:], 4.0, [99.0], {})["mean_ttft_ms"] == 0.0


def test_ratios_leave_out_what_is_no_figure() -> None:
    first = {"median_ttft_ms": 10.0, "backend": "openai", "seed": 7, "p99_itl_ms": 4.0}
    assert ratios(first, {"median_ttft_ms": 20.0, "seed": 7, "p99_itl_ms": 0.0}) == {
        "median_ttft_ms": 0.5
    }

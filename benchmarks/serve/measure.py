"""Every figure's definition, as `vllm bench serve` defines it. Pure: outcomes in, numbers out.

    TTFT   from before the connection is taken to the first event with choices
    TPOT   (E2EL - TTFT) / (output tokens - 1) of each request with more than one token
    ITL    every gap between two events with choices, of all requests together: events, not tokens
    E2EL   to the last event with choices; usage and [DONE] do not count
    throughput   of answers that came whole, over the time from the first due time's origin to the last answer's end
    goodput      answers within every limit a second; one token only counts as TPOT 0

Percentiles interpolate linearly. Output tokens are the usage's; without usage the answer's text is tokenized, and
without a tokenizer its events are counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from benchmarks.serve.answer import Outcome

METRICS = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
    "client_queue_time": ("Client Queue Time", "Client-side Queueing"),
    "e2el_including_client_queue": (
        "E2EL incl. Client Queue",
        "Queue-inclusive End-to-end Latency",
    ),
}
"""Name in flags and JSON keys: (name in the table, heading in the table)."""
SLO_METRICS = ("ttft", "tpot", "e2el")


def metric_values(outcomes: Iterable[Outcome]) -> dict[str, list[float]]:
    """Seconds, of the answers that came whole, by metric."""
    good = [outcome for outcome in outcomes if outcome.is_good]
    return {
        "ttft": [o.ttft_s for o in good],
        "tpot": [o.tpot_s for o in good if o.num_output_tokens > 1],
        "itl": [gap for o in good for gap in o.gaps_s],
        "e2el": [o.latency_s for o in good],
        "client_queue_time": [o.queue_s for o in good],
        "e2el_including_client_queue": [o.latency_s + o.queue_s for o in good],
    }


def is_within(outcome: Outcome, slo_ms: Mapping[str, float]) -> bool:
    """Whether one answer came whole and within every limit; milliseconds, limits included."""
    if not outcome.is_good:
        return False
    values = {"ttft": outcome.ttft_s, "tpot": outcome.tpot_s, "e2el": outcome.latency_s}
    return all(values[name] * 1e3 <= limit for name, limit in slo_ms.items())


def attainment(outcomes: Sequence[Outcome], slo_ms: Mapping[str, float]) -> float:
    """Share of all requests, failed ones included, that are within the limits."""
    if not outcomes:
        return 0.0
    return sum(is_within(outcome, slo_ms) for outcome in outcomes) / len(outcomes)


def summary(
    outcomes: Sequence[Outcome],
    duration_s: float,
    percentiles: Sequence[float],
    slo_ms: Mapping[str, float],
) -> dict[str, Any]:
    """The figures of one run under the keys of vLLM's result file."""
    good = [outcome for outcome in outcomes if outcome.is_good]
    inputs = sum(outcome.num_prompt_tokens for outcome in good)
    outputs = sum(outcome.num_output_tokens for outcome in good)
    within = sum(is_within(outcome, slo_ms) for outcome in good)
    peak_tokens, peak_requests = peaks(good)
    figures: dict[str, Any] = {
        "duration": duration_s,
        "completed": len(good),
        "failed": len(outcomes) - len(good),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": len(good) / duration_s,
        "request_goodput": within / duration_s if slo_ms else None,
        "slo_attainment": within / len(outcomes) if slo_ms and outcomes else None,
        "output_throughput": outputs / duration_s,
        "total_token_throughput": (inputs + outputs) / duration_s,
        "max_output_tokens_per_s": peak_tokens,
        "max_concurrent_requests": peak_requests,
    }
    for name, values in metric_values(outcomes).items():
        figures |= _statistics(name, values, percentiles)
    return figures


def _statistics(name: str, values: list[float], percentiles: Sequence[float]) -> dict[str, float]:
    """Milliseconds; 0 where there is nothing to describe."""
    known = np.array(values or [0.0]) * 1e3
    figures = {
        f"mean_{name}_ms": float(known.mean()),
        f"median_{name}_ms": float(np.median(known)),
        f"std_{name}_ms": float(known.std()),
    }
    for percentile in percentiles:
        key = f"p{percentile_word(percentile)}_{name}_ms"
        figures[key] = float(np.percentile(known, percentile))
    return figures


def percentile_word(percentile: float) -> str:
    """99.0 is written 99, 99.9 stays."""
    return str(int(percentile)) if int(percentile) == percentile else str(percentile)


def event_times(outcome: Outcome) -> np.ndarray:
    """Instants at which one answer's events came."""
    gaps = np.array([outcome.start_s + outcome.ttft_s, *outcome.gaps_s])
    return np.asarray(np.cumsum(gaps))


def per_second(good: Sequence[Outcome], origin_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Events, and requests in flight at any moment, of each whole second after `origin_s`."""
    end_s = max(outcome.start_s + outcome.latency_s for outcome in good)
    seconds = int(np.ceil(end_s - origin_s)) + 1
    events = np.zeros(seconds)
    requests = np.zeros(seconds)
    for outcome in good:
        within = (event_times(outcome) - origin_s).astype(int)
        np.add.at(events, within[within < seconds], 1)
        first = int(outcome.start_s - origin_s)
        last = int(outcome.start_s + outcome.latency_s - origin_s)
        requests[first : last + 1] += 1
    return events, requests


def peaks(good: Sequence[Outcome]) -> tuple[float, int]:
    """Most events in one second, and most requests in one second, counted from the first request's start."""
    if not good:
        return 0.0, 0
    events, requests = per_second(good, min(outcome.start_s for outcome in good))
    return float(events.max()), int(requests.max())


def ratios(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, float]:
    """`first` over `second`, for every figure that both have and that is not zero."""
    return {
        name: value / second[name]
        for name, value in first.items()
        if _is_figure(name, value) and _is_figure(name, second.get(name)) and second[name]
    }


def _is_figure(name: str, value: object) -> bool:
    measured = name.endswith(("_ms", "_throughput", "_goodput", "_tokens", "_per_s"))
    counted = name in ("duration", "completed", "max_concurrent_requests")
    return (measured or counted) and isinstance(value, int | float)

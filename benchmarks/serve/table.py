"""The result as text, line for line as `vllm bench serve` prints it: scripts grep these lines. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.serve.measure import METRICS, percentile_word

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WIDTH = 50
COUNTS = (
    ("Successful requests:", "completed", "{:<10}"),
    ("Failed requests:", "failed", "{:<10}"),
    ("Maximum request concurrency:", "max_concurrency", "{:<10}"),
    ("Request rate configured (RPS):", "request_rate", "{:<10.2f}"),
    ("Benchmark duration (s):", "duration", "{:<10.2f}"),
    ("Total input tokens:", "total_input_tokens", "{:<10}"),
    ("Total generated tokens:", "total_output_tokens", "{:<10}"),
    ("Request throughput (req/s):", "request_throughput", "{:<10.2f}"),
    ("Request goodput (req/s):", "request_goodput", "{:<10.2f}"),
    ("Output token throughput (tok/s):", "output_throughput", "{:<10.2f}"),
    ("Peak output token throughput (tok/s):", "max_output_tokens_per_s", "{:<10.2f}"),
    ("Peak concurrent requests:", "max_concurrent_requests", "{:<10.2f}"),
    ("Total token throughput (tok/s):", "total_token_throughput", "{:<10.2f}"),
)
CLIENT = (
    ("Client CPU (% of a core):", "cpu_share", 100.0),
    ("Client waited for a core (%):", "wait_share", 100.0),
    ("Client read lag median (ms):", "median_lag_ms", 1.0),
    ("Client read lag P99 (ms):", "p99_lag_ms", 1.0),
    ("Client send lag P99 (ms):", "p99_late_ms", 1.0),
)


def result_table(
    result: Mapping[str, Any], metrics: Sequence[str], percentiles: Sequence[float], title: str = ""
) -> str:
    """One run. Lines of figures that the result does not have are left out."""
    heading = " Serving Benchmark Result " if not title else f" {title} "
    lines = [f"{heading:=^{WIDTH}}"]
    for label, key, form in COUNTS:
        if isinstance(result.get(key), int | float):
            lines.append(_line(label, form.format(result[key])))
    for name in metrics:
        if f"mean_{name}_ms" in result:
            lines += _metric(result, name, percentiles)
    lines += _pools(result.get("pools") or {})
    lines += _client(result.get("client") or {})
    if result.get("unreliable"):
        lines.append("UNRELIABLE: the client was the bottleneck")
    lines.append("=" * WIDTH)
    return "\n".join(lines)


def _line(label: str, value: str) -> str:
    return f"{label:<40} {value}"


def _metric(result: Mapping[str, Any], name: str, percentiles: Sequence[float]) -> list[str]:
    short, heading = METRICS[name]
    words = [("Mean", "mean"), ("Median", "median")]
    words += [(f"P{percentile_word(p)}", f"p{percentile_word(p)}") for p in percentiles]
    return [f"{heading:-^{WIDTH}}"] + [
        _line(f"{label} {short} (ms):", f"{result[f'{key}_{name}_ms']:<10.2f}")
        for label, key in words
    ]


def _pools(pools: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not pools:
        return []
    return [f"{'Pools':-^{WIDTH}}"] + [
        _line(f"{role} x{pool['workers']} (tok/s):", f"{pool['tokens_per_s']:<10.2f}")
        for role, pool in pools.items()
    ]


def _client(client: Mapping[str, float | None]) -> list[str]:
    lines = [f"{'Client':-^{WIDTH}}"] if client else []
    for label, key, factor in CLIENT:
        value = client.get(key)
        if value is not None:
            lines.append(_line(label, f"{value * factor:<10.2f}"))
    return lines


def comparison_table(
    results: Mapping[str, Mapping[str, Any]],
    ratios: Mapping[str, Mapping[str, float]],
    keys: Sequence[str],
) -> str:
    """Endpoints side by side; the ratio is the first endpoint's figure over the other's."""
    names = list(results)
    others = [f"/ {name}" for name in names[1:]]
    rows = [["", *names, *others]]
    for key in keys:
        values = [_number(results[name].get(key)) for name in names]
        shares = [_number(ratios[name].get(key)) for name in names[1:]]
        rows.append([key, *values, *shares])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(_cell(row, column, widths) for column in range(len(row))) for row in rows
    )


def _cell(row: Sequence[str], column: int, widths: Sequence[int]) -> str:
    return row[column].ljust(widths[column]) if column == 0 else row[column].rjust(widths[column])


def _number(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else "-"

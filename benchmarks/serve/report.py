"""The page of --report: figures and plots in one file that asks nothing of the network. Owns its HTML. Pure."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Literal

import numpy as np

from benchmarks.serve.measure import METRICS, metric_values, per_second, ratios
from benchmarks.serve.plots import Mark, Series, plot

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from benchmarks.serve.result import Measured

MAX_POINTS = 400
"""Of one curve: more cannot be seen."""
CDFS = ("ttft", "tpot", "itl", "e2el")
WORDS = {"mean": "mean", "median": "median", "p90": "90th percentile", "p99": "99th percentile"}
ROWS = {
    "completed": "requests answered",
    "failed": "requests failed",
    "duration": "duration, s",
    "total_input_tokens": "input tokens",
    "total_output_tokens": "output tokens",
    "request_throughput": "requests a second",
    "request_goodput": "goodput: requests a second within the SLO",
    "slo_attainment": "share of requests within the SLO",
    "output_throughput": "output tokens a second",
    "total_token_throughput": "input and output tokens a second",
    **{
        f"{word}_{name}_ms": f"{METRICS[name][0]}, {said}, ms"
        for name in CDFS
        for word, said in WORDS.items()
    },
}
"""Of the table: key in the result, and what a reader is told."""
STYLE = """
:root{color-scheme:light dark;--bg:#fff;--ink:#1b1f24;--faint:#d8dee4;--soft:#57606a;--slo:#b42318}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--ink:#e6edf3;--faint:#30363d;--soft:#9aa4ae;--slo:#ff8a7a}}
body{background:var(--bg);color:var(--ink);font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1000px;padding:0 1rem}
h1{font-size:1.4rem}p,figcaption,li{color:var(--soft)}code{overflow-wrap:anywhere}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:1.2rem}
figure{margin:0}figcaption{font-weight:600}svg{width:100%;height:auto}
svg text{fill:var(--soft);font-size:11px}.grid{stroke:var(--faint);stroke-width:1}
line.slo{stroke:var(--slo);stroke-width:1.5;stroke-dasharray:5 4}svg text.slo{fill:var(--slo)}
.warning{border-left:4px solid var(--slo);padding:.4rem .8rem;color:var(--ink)}
polyline{fill:none;stroke-width:2}circle{stroke:none;opacity:.6}
ul{list-style:none;padding:0;margin:0;display:flex;gap:1rem;flex-wrap:wrap;font-size:.85rem}
li i{display:inline-block;width:.8em;height:.8em;margin-right:.35em;border-radius:2px}
.wide{overflow-x:auto}table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .8rem;border-bottom:1px solid var(--faint);text-align:right}th:first-child,td:first-child{text-align:left}
"""
COLOURS = ("#2f6fde", "#e0662c", "#2a9d62", "#a04fc9", "#c9a227", "#d13b5c")


def report_page(measured: Sequence[Measured], flags: argparse.Namespace) -> str:
    """A whole HTML document."""
    names = ", ".join(escape(one.name) for one in measured)
    slo_ms = flags.slo_ms
    plots = [_cdf(name, measured, slo_ms) for name in CDFS]
    plots += [_tokens(measured), _in_flight(measured), _scatter(measured, slo_ms)]
    plots += [_pools(one) for one in measured if len(one.pools.samples) > 1]
    if any(one.search is not None for one in measured):
        plots.append(_attainment(measured, flags.slo_attainment))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Serving benchmark: {names}</title><style>{STYLE}{_colours()}</style></head><body>"
        f"<h1>Serving benchmark: {names}</h1>{_doubts(measured)}{_setting(measured, flags)}"
        f'<div class="wide">{_table(measured)}</div>'
        f'<div class="plots">{"".join(plots)}</div></body></html>\n'
    )


def _colours() -> str:
    return "".join(
        f"polyline.s{i}{{stroke:{c}}}circle.s{i}{{fill:{c}}}i.s{i}{{background:{c}}}"
        for i, c in enumerate(COLOURS)
    )


def _doubts(measured: Sequence[Measured]) -> str:
    return "".join(
        f'<p class="warning"><b>Unreliable figures.</b> {escape(f"{one.name}: {one.unreliable}")}</p>'
        for one in measured
        if one.unreliable
    )


def _setting(measured: Sequence[Measured], flags: argparse.Namespace) -> str:
    first = measured[0].result
    parts = [
        f"{first['num_prompts']} requests",
        f"dataset {first['dataset_name']}",
        "the dataset's own times" if first["self_timed"] else f"rate {first['request_rate']} req/s",
        f"seed {first['seed']}",
        first["date"],
    ]
    if flags.max_concurrency is not None:
        parts.append(f"at most {flags.max_concurrency} at once")
    if flags.slo_ms:
        limits = (f"{METRICS[name][0]} {limit:g} ms" for name, limit in flags.slo_ms.items())
        parts.append(f"SLO {', '.join(limits)}")
    lines = [f"<p>{escape(' · '.join(map(str, parts)))}</p>"]
    lines.append(f"<p><code>{escape(flags.command)}</code></p>")
    for one in measured:
        client = one.result["client"]
        lag = client["p99_lag_ms"]
        pools = f", pools {one.result['pool_shape']}" if one.result["pool_shape"] else ""
        said = f"{one.name}: {one.model} at {one.url}{pools}; the client used {client['cpu_share']:.1%} of a core"
        said += "" if lag is None else f" and read within {lag:.2f} ms (99th percentile)"
        lines.append(f"<p>{escape(said)}</p>")
    return "".join(lines)


def _table(measured: Sequence[Measured]) -> str:
    heads = ["", *(one.name for one in measured)]
    heads += [f"{measured[0].name} / {one.name}" for one in measured[1:]]
    shares = [ratios(measured[0].result, one.result) for one in measured[1:]]
    rows = ["".join(f"<th>{escape(head)}</th>" for head in heads)]
    for key, label in ROWS.items():
        values = [one.result.get(key) for one in measured] + [share.get(key) for share in shares]
        cells = "".join(f"<td>{_number(value)}</td>" for value in values)
        if any(value is not None for value in values):
            rows.append(f"<td>{escape(label)}</td>{cells}")
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _number(value: object) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:.2f}"
    return "-"


def _marks(limits_ms: Mapping[str, float], axes: Mapping[str, Literal["x", "y"]]) -> list[Mark]:
    """The SLO's lines of a plot whose axes are these metrics."""
    return [
        Mark(axis, limits_ms[name], f"SLO {METRICS[name][0]} {limits_ms[name]:g} ms")
        for name, axis in axes.items()
        if name in limits_ms
    ]


def _cdf(name: str, measured: Sequence[Measured], slo_ms: Mapping[str, float]) -> str:
    shares = np.linspace(0, 100, MAX_POINTS + 1)
    series = []
    for colour, one in enumerate(measured):
        values = metric_values(one.run.outcomes)[name]
        if values:
            places = np.percentile(np.array(values) * 1e3, shares)
            points = list(zip(places.tolist(), (shares / 100).tolist(), strict=True))
            series.append(Series(one.name, points, colour=colour))
    short, heading = METRICS[name]
    return plot(heading, f"{short}, ms", "share of all", series, _marks(slo_ms, {name: "x"}))


def _tokens(measured: Sequence[Measured]) -> str:
    return plot("Output over time", "s", "events a second", _timeline(measured, 0))


def _in_flight(measured: Sequence[Measured]) -> str:
    return plot("Requests in flight", "s", "requests", _timeline(measured, 1))


def _timeline(measured: Sequence[Measured], which: int) -> list[Series]:
    series = []
    for colour, one in enumerate(measured):
        good = [outcome for outcome in one.run.outcomes if outcome.is_good]
        if good:
            values = per_second(good, one.run.start_s)[which]
            series.append(Series(one.name, list(enumerate(values.tolist())), "step", colour))
    return series


def _scatter(measured: Sequence[Measured], slo_ms: Mapping[str, float]) -> str:
    series = []
    for colour, one in enumerate(measured):
        good = [o for o in one.run.outcomes if o.is_good and o.num_output_tokens > 1]
        points = [(o.ttft_s * 1e3, o.tpot_s * 1e3) for o in good[: MAX_POINTS * 10]]
        series.append(Series(one.name, points, "dots", colour))
    marks = _marks(slo_ms, {"ttft": "x", "tpot": "y"})
    return plot("Each request", "TTFT, ms", "TPOT, ms", series, marks)


def _pools(one: Measured) -> str:
    rates = one.pools.rates(one.run.start_s)
    series = [
        Series(role, points, colour=colour) for colour, (role, points) in enumerate(rates.items())
    ]
    shape = one.pools.shape()
    return plot(f"Pools of {one.name}: {shape}", "s", "tokens a second", series)


def _attainment(measured: Sequence[Measured], target: float) -> str:
    series = []
    for colour, one in enumerate(measured):
        trials = one.search.trials if one.search is not None else []
        points = sorted((trial.rate, trial.attainment) for trial in trials)
        series.append(Series(one.name, points, colour=colour))
    marks = [Mark("y", target, f"wanted {target:.0%}")]
    return plot("Requests within the SLO", "requests a second", "share of all", series, marks)

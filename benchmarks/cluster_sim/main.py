"""`baton bench cluster`: policies of scaling on a simulated cluster: requests in time, and what they cost.

Production code decides (service, router, ledger, scaler, autoscaler); workers are calibrated times. Each policy gets
the same requests. `--fixed 8p2d,9p2d` are pools that never change; `best fixed` is the cheapest of them that attains
the goal. Rows are added to those that `--output` has for the same scenario, so that a long comparison can be made in
pieces. Ends with one line of JSON.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cluster_sim.chart import write_chart
from benchmarks.cluster_sim.rules import QueueLength, Reactive
from benchmarks.environment import environment
from coordinator.planning.observations import Limits, Range
from deploy.config import simulated as flags
from deploy.config.parser import Parser, new_file
from protocol.clock import SystemClock
from protocol.errors import ConfigError
from protocol.roles import Role
from simulation.cluster import SimCluster
from simulation.policies import Planned, Static
from simulation.scoring import out_of_reach, score

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from simulation.cluster import Policy
    from simulation.workload import SimRequest

POLICIES = ("planned", "reactive", "queue")
KEPT_SIZES = 400
LOAD_SPANS = 90
"""Of equal length, for which the chart tells the requests a second."""
COLUMNS = (
    "attained",
    "ttft_attained",
    "tpot_attained",
    "worker_hours",
    "mean_workers",
    "size_changes",
)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="baton bench cluster", description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False
    )
    add = parser.add_argument
    flags.add_workload(parser)
    flags.add_hardware(parser)
    add("--policies", default="planned", help=f"of {', '.join(POLICIES)}, or none")
    add("--fixed", default="", metavar="xPyD,…", help="pools that never change")
    add("--begin", default="2p2d", metavar="xPyD", help="the pools that a policy begins with")
    add("--most", default="64p64d", metavar="xPyD", help="the largest pools that a policy may have")
    add("--queue-each", default="2:16", metavar="P:D", help="outstanding requests of one worker")
    add("--thresholds", default="0.8:0.4", metavar="UP:DOWN", help="of the reactive policy")
    add("--output", type=new_file, metavar="FILE", help="write or extend this JSON")
    add("--chart", type=new_file, metavar="FILE", help="workers over time as SVG")
    return parser.parse_args(argv)


def _pools(text: str, flag: str) -> tuple[int, int]:
    """As --pd, without its bound: a thousand simulated workers need no machines."""
    match = re.fullmatch(r"(\d{1,4})p(\d{1,4})d", text)
    if match is None or int(match[2]) == 0:
        raise ConfigError(f"{flag}: {text!r} is not a shape: write 8p2d, with at least 1d")
    return int(match[1]), int(match[2])


def _pair(text: str, flag: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in text.split(":"))
    except ValueError:
        raise ConfigError(f"{flag}: {text!r}: write two numbers, as 2:16") from None
    if not (0 < first < math.inf and 0 < second < math.inf):
        raise ConfigError(f"{flag}: {text!r}: both must be more than 0, as 2:16")
    return first, second


def _candidates(
    given: argparse.Namespace,
) -> list[tuple[str, tuple[int, int], Callable[[], Policy]]]:
    """Name, first pools, and how to make the policy."""
    prefill, decode = _pools(given.most, "--most")
    limits = Limits(Range(1, prefill), Range(1, decode), prefill + decode)
    targets, begin = flags.targets(given), _pools(given.begin, "--begin")
    if begin[0] > prefill or begin[1] > decode:
        raise ConfigError(f"--begin: {given.begin} is more than --most {given.most}")
    each, marks = _pair(given.queue_each, "--queue-each"), _pair(given.thresholds, "--thresholds")
    if marks[0] <= marks[1]:
        raise ConfigError(f"--thresholds: {given.thresholds!r}: UP must be above DOWN, as 0.8:0.4")
    known: dict[str, tuple[str, Callable[[], Policy]]] = {
        "planned": ("planned", lambda: Planned(targets, limits)),
        "reactive": (
            f"reactive {given.thresholds}",
            lambda: Reactive(limits, high=marks[0], low=marks[1]),
        ),
        "queue": (
            f"queue {given.queue_each}",
            lambda: QueueLength(limits, {Role.PREFILL: each[0], Role.DECODE: each[1]}),
        ),
    }
    found: list[tuple[str, tuple[int, int], Callable[[], Policy]]] = []
    for text in filter(None, given.fixed.split(",")):
        found.append((f"fixed {text}", _pools(text, "--fixed"), Static))  # noqa: PERF401
    chosen = [] if given.policies == "none" else given.policies.split(",")
    for name in chosen:
        if name not in known:
            raise ConfigError(f"--policies: {name!r} is none of {', '.join(POLICIES)}")
        found.append((known[name][0], begin, known[name][1]))
    if not found:
        raise ConfigError("--policies: nothing to compare; name a policy, or pools with --fixed")
    return found


def _run(given: argparse.Namespace, requests: list[SimRequest]) -> list[dict[str, Any]]:
    hardware, targets, candidates = flags.hardware(given), flags.targets(given), _candidates(given)
    print(f"{'':<22}" + "".join(f"{name:>15}" for name in COLUMNS))
    clock, rows = SystemClock(), []
    for name, pools, make in candidates:
        started_s = clock.now_s()
        cluster = SimCluster(requests, hardware, pools, max_first_token_s=targets.ttft_s)
        cluster.run(make())
        row = {"policy": name, **score(cluster, targets)}
        stride = max(1, len(cluster.sizes) // KEPT_SIZES)
        row["sizes"] = [(round(at_s, 1), p, d) for at_s, p, d in cluster.sizes[::stride]]
        row["virtual_s"] = round(cluster.now_s, 1)
        row["took_s"] = round(clock.now_s() - started_s, 1)
        rows.append(row)
        print(_line(row), flush=True)
    if reason := out_of_reach(requests, hardware, targets):
        print(f"baton bench cluster: --slo: {reason}", file=sys.stderr)
    return rows


def _load(requests: list[SimRequest]) -> list[tuple[float, float]]:
    """(beginning of a span, requests a second in it) from 0 to the last arrival, which ends with none."""
    span_s = max(requests[-1].at_s, 1.0) / LOAD_SPANS
    counts = [0] * LOAD_SPANS
    for request in requests:
        counts[min(int(request.at_s / span_s), LOAD_SPANS - 1)] += 1
    spans = [
        (round(index * span_s, 2), round(count / span_s, 4)) for index, count in enumerate(counts)
    ]
    return [*spans, (round(LOAD_SPANS * span_s, 2), 0.0)]


def _line(row: dict[str, Any]) -> str:
    return f"{row['policy']:<22}" + "".join(f"{row[name]:>15}" for name in COLUMNS)


def _scenario(given: argparse.Namespace) -> dict[str, Any]:
    """What must be equal for two rows to be compared."""
    names = (
        *("trace", "requests", "rate", "input_len", "output_len", "spread", "time_scale"),
        *("length_scale", "swing", "waves", "seed", "calibration", "slo"),
    )
    shown = {name: getattr(given, name) for name in names}
    for name in ("trace", "calibration"):
        shown[name] = Path(shown[name]).name if shown[name] else None
    return {**shown, "hardware": asdict(flags.hardware(given))}


def _before(given: argparse.Namespace) -> dict[str, Any]:
    """`commands` and `rows` that the file has; ConfigError when it is of something else."""
    if given.output is None or not given.output.is_file():
        return {}
    try:
        report = json.loads(given.output.read_text(encoding="utf-8"))
        scenario, found = report["scenario"], {name: report[name] for name in ("commands", "rows")}
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"--output: {given.output} is no result of `baton bench cluster`; name a new file"
        ) from None
    if scenario != json.loads(json.dumps(_scenario(given))):
        raise ConfigError(f"--output: {given.output} is of another scenario; name a new file")
    return found


def _merge(
    given: argparse.Namespace, argv: list[str], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Rows of this run over those that the file has of the same scenario."""
    report = {
        "scenario": json.loads(json.dumps(_scenario(given))),
        "commands": [],
        "environment": environment(),
        "rows": [],
        **_before(given),
    }
    report["commands"].append("baton bench cluster " + " ".join(argv))
    new = {row["policy"] for row in rows}
    report["rows"] = [row for row in report["rows"] if row["policy"] not in new] + rows
    goal = flags.targets(given).goal
    fixed = [r for r in report["rows"] if r["policy"].startswith("fixed") and r["attained"] >= goal]
    best = min(fixed, key=lambda row: (row["worker_hours"], -row["attained"]), default=None)
    report["best_fixed"] = best["policy"] if best else None
    return report


def main(argv: list[str]) -> int:
    """Simulate and print."""
    given = _arguments(argv)
    logging.getLogger("coordinator").addHandler(logging.NullHandler())  # of simulated requests
    requests = flags.workload(given)
    _before(given)
    report = _merge(given, argv, _run(given, requests))
    if given.output is not None:
        given.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if given.chart is not None:
        shown = [r for r in report["rows"] if not r["policy"].startswith("fixed")]
        shown += [r for r in report["rows"] if r["policy"] == report["best_fixed"]]
        write_chart(given.chart, "Workers over time, simulated", shown, _load(requests))
    print(json.dumps({"best_fixed": report["best_fixed"], "rows": len(report["rows"])}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

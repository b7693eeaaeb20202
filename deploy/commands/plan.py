"""`baton plan`: how many workers of each role hold the targets, found by simulation.

The workload is a trace or random requests, the worker a calibration by `baton bench engine`. Prints the recommended
pools and the shapes around them; with --json, everything as JSON. The same flags and seed print the same plan.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from deploy.config import simulated as flags
from deploy.config.parser import Parser, new_file, typed
from deploy.config.values import whole
from protocol.errors import ConfigError
from protocol.ids import MAX_WORKERS
from simulation.calibration import calibrated_model
from simulation.cluster import SimCluster
from simulation.policies import Static
from simulation.scoring import out_of_reach, score
from simulation.sizing import Point, Sizing

if TYPE_CHECKING:
    import argparse

NOT_POSSIBLE = 1


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="baton plan", description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--model", default="smollm2-135m", help="whose calibration it is (default: %(default)s)")
    flags.add_workload(parser)
    flags.add_hardware(parser)
    add(
        "--max-workers",
        type=typed(whole(2, MAX_WORKERS)),
        default=32,
        metavar="N",
        help="of both pools (default: %(default)s)",
    )
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--output", type=new_file, metavar="FILE", help="write the JSON there")
    return parser.parse_args(argv)


def _check(given: argparse.Namespace) -> None:
    measured = calibrated_model(given.calibration)
    if measured != given.model:
        raise ConfigError(
            f"--model: {given.calibration} was measured with {measured!r}; measure yours with "
            f"`baton bench engine {given.model} --output FILE` and give --calibration FILE"
        )


def make_plan(given: argparse.Namespace) -> dict[str, Any]:
    """The plan as JSON."""
    requests, hardware, targets = flags.workload(given), flags.hardware(given), flags.targets(given)

    def measure(prefill: int, decode: int) -> Point:
        cluster = SimCluster(requests, hardware, (prefill, decode))
        cluster.run(Static())
        found = score(cluster, targets)
        return Point(
            prefill, decode, found["attained"], found["ttft_attained"], found["tpot_attained"]
        )

    sizing = Sizing(measure, targets.goal, given.max_workers)
    best = sizing.best()
    reason = "" if best else _reason(sizing, out_of_reach(requests, hardware, targets))
    span_s = max(requests[-1].at_s - requests[0].at_s, 1e-9)
    return {
        "model": given.model,
        "targets": {
            "ttft_ms": targets.ttft_s * 1e3,
            "tpot_ms": targets.tpot_s * 1e3,
            "goal": targets.goal,
        },
        "workload": {
            "trace": given.trace.name if given.trace else None,
            "requests": len(requests),
            "rate": round(len(requests) / span_s, 4),
            "seed": given.seed,
        },
        "hardware": asdict(hardware),
        "recommended": asdict(best) | {"pd": f"{best.prefill}p{best.decode}d"} if best else None,
        "reason": reason or None,
        "curve": [asdict(point) for point in sizing.points],
    }


def _reason(sizing: Sizing, out_of_reach: str) -> str:
    """Why no shape attains the goal, and what would change that."""
    if out_of_reach:
        return f"--slo: {out_of_reach}"
    best = max(sizing.points, key=lambda point: point.attained)
    return (
        f"the best that was tried, {best.prefill}p{best.decode}d, has {best.attained:.1%} in time; "
        "allow more workers with --max-workers, or loosen --slo"
    )


def _show(plan: dict[str, Any]) -> None:
    targets, workload, best = plan["targets"], plan["workload"], plan["recommended"]
    print(
        f"{plan['model']}: {workload['requests']} requests at {workload['rate']:.2f}/s, "
        f"{targets['goal']:.0%} within TTFT {targets['ttft_ms']:g} ms and TPOT {targets['tpot_ms']:g} ms\n"
    )
    print(f"{'workers':>8}{'prefill':>9}{'decode':>8}{'in time':>10}{'TTFT':>9}{'TPOT':>9}")
    for point in plan["curve"]:
        is_best = best and (point["prefill"], point["decode"]) == (best["prefill"], best["decode"])
        shares = "".join(f"{point[name]:>9.1%}" for name in ("attained", "ttft", "tpot"))
        total = point["prefill"] + point["decode"]
        print(
            f"{total:>8}{point['prefill']:>9}{point['decode']:>8} {shares}{'  ←' if is_best else ''}"
        )
    if best:
        print(f"\nRecommended: baton serve {plan['model']} --pd {best['pd']}")
    else:
        print(f"\nNo shape within --max-workers holds the targets: {plan['reason']}.")


def main(argv: list[str]) -> int:
    """Exit status 1 when no shape holds the targets."""
    given = _arguments(argv)
    _check(given)
    logging.getLogger("coordinator").addHandler(logging.NullHandler())  # of simulated requests
    plan = make_plan(given)
    text = json.dumps(plan, indent=1)
    if given.output is not None:
        given.output.write_text(text + "\n", encoding="utf-8")
    if given.json:
        print(text)
        if plan["reason"]:
            print(f"baton plan: no shape holds the targets: {plan['reason']}", file=sys.stderr)
    else:
        _show(plan)
    return 0 if plan["recommended"] else NOT_POSSIBLE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

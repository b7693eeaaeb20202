"""What a simulation came to. Owns the definitions; the same for every policy."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.planning.observations import Targets
    from simulation.calibration import Hardware
    from simulation.cluster import Ended, SimCluster
    from simulation.workload import SimRequest


def holds(ended: Ended, targets: Targets) -> bool:
    """First token in time, and the mean of the following ones too; what ended badly holds nothing."""
    if ended.error or ended.ttft_s is None or ended.ttft_s > targets.ttft_s:
        return False
    return ended.tpot_s is None or ended.tpot_s <= targets.tpot_s


def attained(cluster: SimCluster, targets: Targets) -> float:
    """Share of all requests of the workload, refused ones included."""
    return sum(holds(ended, targets) for ended in cluster.ended) / len(cluster.requests)


def score(cluster: SimCluster, targets: Targets) -> dict[str, Any]:
    """One row of a comparison."""
    well = [ended for ended in cluster.ended if not ended.error]
    ttfts = sorted(ended.ttft_s for ended in well if ended.ttft_s is not None)
    tpots = sorted(ended.tpot_s for ended in well if ended.tpot_s is not None)
    sizes = [prefill + decode for _, prefill, decode in cluster.sizes]
    return {
        "requests": len(cluster.requests),
        "ended": len({ended.number for ended in cluster.ended}),
        "errors": dict(Counter(ended.error for ended in cluster.ended if ended.error)),
        "attained": round(attained(cluster, targets), 4),
        "ttft_attained": _share(ttfts, targets.ttft_s, len(cluster.requests)),
        "tpot_attained": _share(tpots, targets.tpot_s, max(len(tpots), 1)),
        "worker_hours": round(cluster.worker_s / 3600, 3),
        "mean_workers": round(cluster.worker_s / max(cluster.now_s, 1e-9), 2),
        "least_workers": min(sizes),
        "most_workers": max(sizes),
        "size_changes": len(cluster.sizes) - 1,
        "replays": cluster.service.requests.replays,
        "ttft_ms": _quantiles(ttfts),
        "tpot_ms": _quantiles(tpots),
    }


def out_of_reach(requests: Sequence[SimRequest], hardware: Hardware, targets: Targets) -> str:
    """Which target an idle cluster of any size would miss, and what it would hold; empty when it could hold both.

    Prompts are taken whole: a cached prefix may still bring one in time."""
    alone_s = {
        "ttft": [hardware.prompt_s(0, each.prompt_tokens) for each in requests],
        "tpot": [hardware.step_s(1, each.prompt_tokens) for each in requests],
    }
    for name, limit_s in (("ttft", targets.ttft_s), ("tpot", targets.tpot_s)):
        needed_s = sorted(alone_s[name])[math.ceil(targets.goal * len(requests)) - 1]
        if needed_s > limit_s:
            least = math.ceil(needed_s * 1e3)
            return (
                f"{name}:{limit_s * 1e3:g} is out of reach of any number of workers: for {targets.goal:.0%} of these "
                f"requests an idle one needs up to {least} ms; write {name}:{least} or more, or a lower goal"
            )
    return ""


def _share(values: list[float], limit: float, total: int) -> float:
    return round(sum(value <= limit for value in values) / total, 4)


def _quantiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    last = len(values) - 1
    return {f"p{p}": round(values[int(p / 100 * last)] * 1e3, 1) for p in (50, 90, 99)}

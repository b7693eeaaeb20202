"""What stores keep, lend and write, for Prometheus. Owns the names of these families; read from `GET /cluster`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric

COUNTERS = {
    "kept_blocks": "Blocks of other workers that were proven and kept",
    "dropped_blocks": "Blocks that were to be kept and came too many at a time",
    "failed_runs": "Runs of blocks that their holders had no more, or that were not proven",
    "asked_blocks": "Blocks that readers looked for, here or not",
    "disk_read_bytes": "Bytes of blocks that were read from the disk, and proven",
    "disk_written_bytes": "Bytes of blocks that are on the disk for good",
    "disk_evicted_blocks": "Blocks that made room for others on the disk",
    "disk_proofs_failed": "Blocks on the disk that were not what was written; nobody got them",
    "disk_errors": "Failed reads and writes of the disk",
}
GAUGES = {
    "waiting_blocks": "Blocks that are to be kept and are not here yet",
    "disk_blocks": "Blocks on the disk",
    "disk_bytes": "What the disk tier takes of its file system",
    "disk_limit_bytes": "What it may take",
    "disk_lag_s": "Age of the oldest block that waits to be written",
}


def store_families(view: dict[str, Any]) -> Iterable[Metric]:
    """Nothing without a store."""
    stores = [worker for worker in view.get("workers", ()) if "store" in worker]
    if not stores:
        return
    unkept = view.get("storing", {}).get("unkept_blocks", 0)
    yield GaugeMetricFamily("baton_unkept_blocks", "Blocks that no store has yet", float(unkept))
    for kind, families in ((CounterMetricFamily, COUNTERS), (GaugeMetricFamily, GAUGES)):
        for name, about in families.items():
            shown = f"baton_store_{name.removesuffix('_s')}" + (
                "_seconds" if name.endswith("_s") else ""
            )
            family = kind(shown, about, labels=("worker",))
            for worker in stores:
                family.add_metric((worker["id"],), float(worker["store"][name]))
            yield family
    yield _lent(stores)


def _lent(stores: list[dict[str, Any]]) -> Metric:
    family = CounterMetricFamily(
        "baton_store_lent_blocks", "Blocks offered to readers, by tier", labels=("worker", "tier")
    )
    for worker in stores:
        for tier in ("memory", "disk"):
            family.add_metric((worker["id"], tier), float(worker["store"][f"lent_{tier}_blocks"]))
    return family

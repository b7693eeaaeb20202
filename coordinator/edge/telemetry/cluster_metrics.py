"""Gauges of the workers, read from the service when Prometheus asks. Owns no state of its own."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from coordinator.edge.telemetry.store_metrics import store_families
from protocol.roles import Role
from protocol.worker_load import STEP_TOKEN_BUCKETS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.core import Metric
    from prometheus_client.samples import Sample

BLOCK_STATES = ("free", "cached", "held")
STAGES = ("waiting", "running", "transferring")


MODEL = "model_name"


class ClusterCollector(Collector):
    """Turns every model's view into metric families; with several models each sample names its own."""

    def __init__(self) -> None:
        self._models: list[ModelCollector] = []

    def add(self, model_name: str, cluster: Callable[[], dict[str, Any]]) -> None:
        """One model more."""
        self._models.append(ModelCollector(model_name, cluster))

    def remove(self, model_name: str) -> None:
        """That one is served no more."""
        self._models = [model for model in self._models if model.model_name != model_name]

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask a service that is still starting."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Everything, as of now."""
        if len(self._models) == 1:
            return self._models[0].collect()
        found: dict[str, Metric] = {}
        for model in self._models:
            for family in model.collect():
                named = [_named(sample, model.model_name) for sample in family.samples]
                if family.name in found:
                    found[family.name].samples += named
                else:
                    family.samples = named
                    found[family.name] = family
        return found.values()


def _named(sample: Sample, model_name: str) -> Sample:
    return sample._replace(labels={MODEL: model_name} | sample.labels)


class ModelCollector:
    """Turns one model's `GET /cluster` view into metric families."""

    def __init__(self, model_name: str, cluster: Callable[[], dict[str, Any]]) -> None:
        self.model_name = self._model_name = model_name
        self._cluster = cluster

    def collect(self) -> Iterable[Metric]:
        """Everything, as of now."""
        view = self._cluster()
        workers = view.get("workers", [])
        yield from self._aliases(view, [w for w in workers if w.get("role") != Role.STORE])
        yield self._replicas(workers)
        yield self._wanted(view.get("target", {}))
        yield from self._obstacles(view.get("pools", {}), view.get("scaling", {}))
        yield from self._slo(view.get("slo"))
        yield from self._autoscaler(view.get("autoscaler", {}))
        yield self._blocks(workers)
        yield self._requests(workers)
        yield from self._totals(view, workers)
        yield from store_families(view)

    def _aliases(self, view: dict[str, Any], workers: list[dict[str, Any]]) -> Iterable[Metric]:
        """The gauges that llm-d and the gateway extension route by.

        A request is in both pools at once: it counts as waiting where it waits, else as running.
        """
        requests = view.get("requests", {})
        live = requests.get("live", 0)
        waiting = min(_sum(workers, "requests", "waiting") + requests.get("queued", 0), live)
        total = _sum(workers, "blocks", "total")
        usage = _sum(workers, "blocks", "held") / total if total else 0.0
        yield self._gauge("vllm:num_requests_running", "Requests on workers", live - waiting)
        yield self._gauge("vllm:num_requests_waiting", "Requests that wait", waiting)
        queued = min(requests.get("queued", 0), waiting)
        yield self._waiting({"capacity": queued, "deferred": waiting - queued})
        yield self._gauge("vllm:kv_cache_usage_perc", "Blocks in use, 0 to 1", usage)
        yield self._gauge("baton_requests_live", "Requests that have not ended", live)
        yield self._sleep(view.get("sleep", {}).get("level", 0))
        yield self._phases(requests.get("phases", {}))
        yield self._cache_config(workers, total)

    def _waiting(self, by_reason: dict[str, int]) -> Metric:
        """capacity: for room in the pools, not sent yet; deferred: sent, and a worker has not begun."""
        family = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason",
            "Requests that wait, by why; the sum is vllm:num_requests_waiting",
            labels=("model_name", "reason"),
        )
        for reason, count in by_reason.items():
            family.add_metric((self._model_name, reason), count)
        return family

    def _sleep(self, level: int) -> Metric:
        """vLLM's three, one of which is 1."""
        family = GaugeMetricFamily(
            "vllm:engine_sleep_state",
            "1 for what the workers are: awake, asleep without KV cache (level 1), or without weights too (level 2)",
            labels=("model_name", "engine", "sleep_state"),
        )
        for state, its in (("awake", 0), ("weights_offloaded", 1), ("discard_all", 2)):
            family.add_metric((self._model_name, "0", state), float(level == its))
        return family

    def _phases(self, phases: dict[str, int]) -> Metric:
        family = GaugeMetricFamily(
            "baton_requests", "Live requests by phase", labels=("model_name", "phase")
        )
        for phase, count in phases.items():
            family.add_metric((self._model_name, phase), count)
        return family

    def _cache_config(self, workers: list[dict[str, Any]], num_blocks: int) -> Metric:
        """An info metric: its value is 1, its labels say the size of all pools together."""
        labels = ("model_name", "engine", "block_size", "num_gpu_blocks")
        family = GaugeMetricFamily("vllm:cache_config_info", "KV pools, all workers", labels=labels)
        size = next((worker.get("block_size", 0) for worker in workers), 0)
        family.add_metric((self._model_name, "0", str(size), str(num_blocks)), 1)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=("model_name", "engine"))
        family.add_metric((self._model_name, "0"), value)
        return family

    def _replicas(self, workers: list[dict[str, Any]]) -> Metric:
        family = GaugeMetricFamily("baton_workers", "Workers", labels=("role", "state"))
        states = Counter((worker["role"], worker["state"]) for worker in workers)
        for labels, count in states.items():
            family.add_metric(labels, count)
        return family

    def _wanted(self, target: dict[str, int]) -> Metric:
        family = GaugeMetricFamily("baton_workers_target", "Workers wanted", labels=("role",))
        for role, count in target.items():
            family.add_metric((role,), count)
        return family

    def _obstacles(
        self, pools: dict[str, dict[str, int]], scaling: dict[str, Any]
    ) -> Iterable[Metric]:
        """What keeps the pools from the sizes that are wanted."""
        waiting = GaugeMetricFamily(
            "baton_workers_waiting", "Workers that wait for a slot or node", labels=("role",)
        )
        for role, counts in pools.items():
            waiting.add_metric((role,), counts["waiting"])
        yield waiting
        yield GaugeMetricFamily(
            "baton_launcher_away",
            "1 while workers can be neither started nor stopped",
            float(bool(scaling.get("away"))),
        )

    def _slo(self, slo: dict[str, Any] | None) -> Iterable[Metric]:
        """How the last minutes were; names without samples where nobody set an SLO, or nothing ended."""
        for name, text, key in (
            ("baton_slo_attained_ratio", "Requests of five minutes that held the SLO", "attained"),
            ("baton_slo_goal_ratio", "Requests that should hold the SLO", "goal"),
            ("baton_slo_goodput_per_second", "Requests that held the SLO", "goodput_per_s"),
        ):
            yield GaugeMetricFamily(name, text, None if slo is None else slo[key])

    def _autoscaler(self, shown: dict[str, Any]) -> Iterable[Metric]:
        """What the planner thinks; names without samples where it is off."""
        needed = GaugeMetricFamily(
            "baton_autoscaler_needed", "Workers that the planner would have", labels=("role",)
        )
        for role, count in shown.get("needs", {}).items():
            needed.add_metric((role,), count)
        yield needed
        decisions = CounterMetricFamily(
            "baton_autoscaler_decisions", "What the planner decided", labels=("decision",)
        )
        for decision, count in shown.get("counts", {}).items():
            decisions.add_metric((decision,), count)
        yield decisions
        yield GaugeMetricFamily(
            "baton_autoscaler_trouble",
            "1 while an order of the planner was given up",
            float(shown["trouble"] is not None) if shown.get("enabled") else None,
        )

    def _blocks(self, workers: list[dict[str, Any]]) -> Metric:
        labels = ("worker", "role", "state")
        family = GaugeMetricFamily("baton_kv_blocks", "KV blocks by state", labels=labels)
        for worker in workers:
            for state in BLOCK_STATES:
                count = worker.get("blocks", {}).get(state, 0)
                family.add_metric((worker["id"], worker["role"], state), count)
        return family

    def _requests(self, workers: list[dict[str, Any]]) -> Metric:
        labels = ("worker", "role", "stage")
        family = GaugeMetricFamily("baton_worker_requests", "Requests by stage", labels=labels)
        for worker in workers:
            for stage in STAGES:
                count = worker.get("requests", {}).get(stage, 0)
                family.add_metric((worker["id"], worker["role"], stage), count)
        return family

    def _totals(self, view: dict[str, Any], workers: list[dict[str, Any]]) -> Iterable[Metric]:
        """Counters that workers keep; they begin again when a worker does."""
        names = sorted({name for worker in workers for name in worker.get("totals", {})})
        for name in names:
            family = CounterMetricFamily(
                f"baton_worker_{name}", f"{name} of each worker", labels=("worker", "role")
            )
            for worker in workers:
                value = worker.get("totals", {}).get(name, 0)
                family.add_metric((worker["id"], worker["role"]), value)
            yield family
        for name in ("replays", "handovers", "transfer_failures", "unknown_failures"):
            family = CounterMetricFamily(f"baton_{name}", f"{name} seen by the coordinator")
            family.add_metric((), view.get(name, 0))
            yield family
        yield from self._lifetime(view.get("lifetime"))

    def _lifetime(self, lifetime: dict[str, Any] | None) -> Iterable[Metric]:
        """Sums over all workers, those that are gone included."""
        if lifetime is None:
            return
        labels, values = ("model_name", "engine"), (self._model_name, "0")
        preemptions = CounterMetricFamily("vllm:num_preemptions", "Preemptions", labels=labels)
        preemptions.add_metric(values, lifetime["preemptions"])
        yield preemptions
        sizes = HistogramMetricFamily(
            "vllm:iteration_tokens_total", "Tokens in a step of any worker", labels=labels
        )
        bounds = [*map(float, STEP_TOKEN_BUCKETS), math.inf]
        counts = itertools.accumulate(lifetime["step_sizes"])
        buckets = [(_bound(b), float(n)) for b, n in zip(bounds, counts, strict=True)]
        sizes.add_metric(values, buckets, lifetime["stepped_tokens"])
        yield sizes


def _bound(bound: float) -> str:
    """A bucket's upper bound as Prometheus writes it."""
    return "+Inf" if bound == math.inf else str(bound)


def _sum(workers: list[dict[str, Any]], group: str, name: str) -> int:
    return sum(int(worker.get(group, {}).get(name, 0)) for worker in workers)

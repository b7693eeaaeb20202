"""What each revision of a model has and had, for Prometheus. Owns the names of these families; read from what operators see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.core import Metric

LABELS = ("model_name", "revision")


class RevisionCollector(Collector):
    """`view` is every model that has revisions."""

    def __init__(self, view: Callable[[], list[dict[str, Any]]]) -> None:
        self._view = view

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask who is still starting."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Everything, as of now."""
        share = GaugeMetricFamily(
            "baton_revision_share", "Part of new conversations, 0 to 1", labels=LABELS
        )
        requests = CounterMetricFamily(
            "baton_revision_requests", "Requests that were given the revision", labels=LABELS
        )
        for model in self._view():
            for each in model["revisions"]:
                labels = (model["model"], each["revision"])
                share.add_metric(labels, each["share"])
                requests.add_metric(labels, each["requests"])
        yield share
        yield requests

"""How deployments of model groups do, for Prometheus. Owns these metrics' names; labels are names of the router's file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prometheus_client import CollectorRegistry


class UpstreamMetrics:
    """`is_cooling` is asked for each deployment at every scrape."""

    def __init__(
        self, registry: CollectorRegistry, is_cooling: Mapping[str, Callable[[], float]]
    ) -> None:
        self._ended = Counter(
            "baton_deployment_requests",
            "Tries at a deployment of a model group, by how they ended",
            ("deployment", "outcome"),
            registry=registry,
        )
        cooling = Gauge(
            "baton_deployment_cooling",
            "1 while a deployment is left alone after failures",
            ("deployment",),
            registry=registry,
        )
        for name, asks in is_cooling.items():
            cooling.labels(name).set_function(asks)

    def ended(self, deployment_id: str, outcome: str) -> None:
        """One try is over."""
        self._ended.labels(deployment_id, outcome).inc()

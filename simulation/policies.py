"""Who decides the pools' sizes in a simulation: nobody, or the production autoscaler."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coordinator.cluster.autoscaler import Autoscaler
    from coordinator.planning.observations import Limits, Targets
    from simulation.cluster import SimCluster


class Static:
    """The pools stay as they are."""

    def begin(self, cluster: SimCluster) -> None:
        """Nothing to prepare."""

    def tick(self, cluster: SimCluster) -> None:
        """Nothing to decide."""


class Planned:
    """The production autoscaler."""

    def __init__(self, targets: Targets, limits: Limits) -> None:
        self._targets, self._limits = targets, limits
        self.autoscaler: Autoscaler | None = None

    def begin(self, cluster: SimCluster) -> None:
        """Wire it to the cluster."""
        self.autoscaler = cluster.service.autoscale(self._targets, self._limits)

    def tick(self, cluster: SimCluster) -> None:
        """As a started cluster's tick does."""
        del cluster
        assert self.autoscaler is not None
        self.autoscaler.tick()

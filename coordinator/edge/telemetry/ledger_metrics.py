"""How the ledger does, for Prometheus. Owns its metric names; no key and no tenant is a label."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from coordinator.accounts.accounts import Accounts


class LedgerCollector(Collector):
    """Asked at every scrape."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    def collect(self) -> Iterator[Metric]:
        """Whether usage is written, and how much is not."""
        state = self._accounts.state()
        told = "Whether usage is written down: 0 as long as the disk does not take it"
        yield GaugeMetricFamily("baton_ledger_writable", told, value=float(not state.reason))
        told = "Entries that are not on the disk yet"
        yield GaugeMetricFamily("baton_ledger_waiting_entries", told, value=state.waiting)
        told = "Entries that there was no room to keep"
        yield CounterMetricFamily("baton_ledger_lost_entries", told, value=state.lost)

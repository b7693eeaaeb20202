"""What is counted of each adapter, under names that cannot grow without bound."""

from __future__ import annotations

from prometheus_client.exposition import generate_latest

from coordinator.edge.telemetry.adapter_metrics import MAX_NAMES, AdapterMetrics
from coordinator.edge.telemetry.metrics import Families
from protocol.clock import ManualClock


def test_requests_and_tokens_are_counted_by_adapter_and_late_names_together() -> None:
    families = Families(ManualClock(), "0")
    red, blue = (AdapterMetrics(families.counter, name) for name in ("red", "blue"))
    red.started("sql", 7)
    red.generated("sql", 3)
    blue.started("poems", 5)
    for number in range(MAX_NAMES + 10):
        red.started(f"late-{number}", 1)
    told = generate_latest(families.registry).decode()
    assert 'baton_adapter_requests_total{adapter="sql",model_name="red"} 1.0' in told
    assert 'baton_adapter_prompt_tokens_total{adapter="sql",model_name="red"} 7.0' in told
    assert 'baton_adapter_generation_tokens_total{adapter="sql",model_name="red"} 3.0' in told
    assert 'baton_adapter_generation_tokens_total{adapter="poems",model_name="blue"} 0.0' in told
    assert 'baton_adapter_requests_total{adapter="other",model_name="red"} 11.0' in told
    assert told.count('adapter_requests_total{adapter="late-') == MAX_NAMES - 1

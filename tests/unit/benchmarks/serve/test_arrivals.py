"""What may be asked of a load's times, and the times that a dataset brings."""

from __future__ import annotations

import pytest

from benchmarks.serve.arrivals import check, own_times
from benchmarks.serve.request import BenchRequest
from protocol.errors import ConfigError
from simulation.traffic import Traffic


def test_a_trace_brings_its_own_times() -> None:
    requests = [BenchRequest([1], 1, 1, 0.0), BenchRequest([1], 1, 1, 2.5)]
    assert own_times(requests) == [0.0, 2.5]


def test_prompts_without_times_bring_no_schedule() -> None:
    assert own_times([BenchRequest([1], 1, 1)]) is None


@pytest.mark.parametrize(
    ("traffic", "flag"),
    [
        (Traffic(rate=0.0), "--request-rate"),
        (Traffic(burstiness=0.0), "--burstiness"),
        (Traffic(rate=2.0, ramp="linear", ramp_start=1, ramp_end=2), "--ramp-up-strategy"),
        (Traffic(ramp="linear", ramp_start=3, ramp_end=2), "--ramp-up-end-rps"),
        (Traffic(ramp="linear", ramp_start=0, ramp_end=2), "--ramp-up-start-rps"),
    ],
)
def test_traffic_that_cannot_be_is_refused_by_its_flag(traffic: Traffic, flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        check(traffic)

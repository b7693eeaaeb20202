"""What was measured becomes what a simulated step costs."""

from __future__ import annotations

import json

import pytest

from protocol.errors import ConfigError
from simulation.calibration import DEFAULT_CALIBRATION, fit, load_calibration, relative_errors


def test_the_fit_meets_what_was_measured() -> None:
    report = json.loads(DEFAULT_CALIBRATION.read_text())
    errors = relative_errors(report, fit(report))
    assert errors["prefill"] < 0.03
    assert errors["decode"] < 0.1


def test_no_cost_is_below_zero() -> None:
    report = json.loads(DEFAULT_CALIBRATION.read_text())
    for row in report["decode"]:
        row["step_ms"] = 10.0
    hardware = fit(report)
    assert min(hardware.base_s, hardware.sequence_s, hardware.context_s) >= 0


def test_a_file_that_is_no_calibration_is_named(tmp_path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"rows": []}')
    with pytest.raises(
        ConfigError,
        match=r"--calibration: .*other\.json is no result of a benchmark: no list 'prefill'",
    ):
        load_calibration(path)

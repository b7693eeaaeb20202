"""What operators send is taken as it is: true is no number, "5" neither, and "yes" is no truth."""

from __future__ import annotations

import pytest

from coordinator.edge.http.bodies import check_fields
from coordinator.edge.operations.routes_adapters import LoadRequest, UnloadRequest
from coordinator.edge.operations.routes_autoscale import AutoscaleRequest
from coordinator.edge.operations.routes_keys import KeyRequest, RotateRequest
from coordinator.edge.operations.routes_pools import DrainRequest, ScaleRequest
from coordinator.edge.operations.routes_rollouts import StartRequest, WeightsRequest
from protocol.errors import InvalidRequest

NEEDED = {
    LoadRequest: {"lora_name": "a", "lora_path": "/a"},
    UnloadRequest: {"lora_name": "a"},
    StartRequest: {"model": "m", "revision": "v2"},
}
NUMBERS = [
    (UnloadRequest, "lora_int_id"),
    *((AutoscaleRequest, name) for name in ("ttft_ms", "tpot_ms", "goal", "total", "idle_s")),
    *((KeyRequest, name) for name in ("budget", "expires_in_s", "weight", "priority")),
    *((KeyRequest, f"{what}_per_minute") for what in ("requests", "tokens")),
    (RotateRequest, "grace_s"),
    (DrainRequest, "within_s"),
    *((ScaleRequest, name) for name in ("prefill", "decode")),
    (StartRequest, "weight"),
]


@pytest.mark.parametrize("value", [True, False, "1", "0.5"])
@pytest.mark.parametrize(("model", "field"), NUMBERS)
def test_what_is_no_number_is_refused_by_its_field(model, field, value):
    assert field in model.model_fields
    with pytest.raises(InvalidRequest) as refused:
        check_fields(NEEDED.get(model, {}) | {field: value}, model)
    assert refused.value.param == field


@pytest.mark.parametrize("value", [True, "1"])
def test_a_weight_of_many_is_a_number(value):
    with pytest.raises(InvalidRequest) as refused:
        check_fields({"model": "m", "weights": {"v1": value}}, WeightsRequest)
    assert refused.value.param == "weights.v1"


@pytest.mark.parametrize("value", [1, "yes", "true"])
def test_what_is_no_truth_is_refused_by_its_field(value):
    with pytest.raises(InvalidRequest) as refused:
        check_fields(NEEDED[LoadRequest] | {"load_inplace": value}, LoadRequest)
    assert refused.value.param == "load_inplace"


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (DrainRequest, {"within_s": 0}),
        (KeyRequest, {"budget": 5}),
        (AutoscaleRequest, {"goal": 0.9}),
    ],
)
def test_numbers_are_taken_whole_or_not(model, told):
    check_fields(told, model)

"""Cores of one host, shared out among the workers of several models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.config.serve_config import resolve
from deploy.config.values import GIB
from deploy.launch.fleet_plan import make_fleet_plan, worker_bytes
from deploy.launch.plan import Host, make_plan
from engine.checkpoints.prepared import WEIGHTS_NAME
from protocol.specs import WorkerSpec
from tests.e2e.launcher_driver import MODEL

HOST = Host((0, 1, 2, 3), None, 16 * GIB)
Cores = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


def workers(directory: Path, host: Host = HOST, **options: Any) -> tuple[WorkerSpec, ...]:
    named = {name.replace("_", "-"): value for name, value in options.items()}
    config = resolve({"kv-cache-memory": "32MiB"} | named, {}).config
    (directory / WEIGHTS_NAME).write_bytes(b"0")
    models = [
        msgspec.structs.replace(MODEL, name=name, served_names=(name,), directory=str(directory))
        for name in ("red", "blue")
    ]
    return make_fleet_plan([config, config], models, host, directory, 8000, make_plan).workers


def cores(found: tuple[WorkerSpec, ...]) -> Cores:
    return {worker.worker_id: (worker.cores, worker.lent_cores) for worker in found}


def test_a_worker_that_sleeps_lends_its_cores_to_those_of_other_models_too(tmp_path: Path) -> None:
    assert cores(workers(tmp_path, pd="0p1d")) == {
        "red.decode-0": ((0, 1), (2, 3)),
        "blue.decode-0": ((2, 3), (0, 1)),
    }


def test_of_the_cores_that_are_lent_its_neighbours_come_first(tmp_path: Path) -> None:
    assert cores(workers(tmp_path, pd="1p1d")) == {
        "red.prefill-0": ((0,), (1, 2, 3)),
        "red.decode-0": ((1,), (2, 3, 0)),
        "blue.prefill-0": ((2,), (3, 0, 1)),
        "blue.decode-0": ((3,), (0, 1, 2)),
    }


@pytest.mark.parametrize("options", [{"lend_cores": False}, {"cpu_affinity": "none"}])
def test_nothing_is_lent_where_nobody_wants_that_or_has_cores(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    assert {lent for _, lent in cores(workers(tmp_path, pd="1p1d", **options)).values()} == {()}
    few = Host((0, 1), None, 16 * GIB)
    assert {lent for _, lent in cores(workers(tmp_path, few, pd="1p1d")).values()} == {()}


def test_a_lone_worker_that_is_lent_cores_needs_room_for_what_they_compute(tmp_path: Path) -> None:
    lending, alone = (
        resolve({"kv-cache-memory": "32MiB", "pd": "0p1d", "lend-cores": lends}, {}).config
        for lends in (True, False)
    )
    assert worker_bytes(lending, MODEL, HOST) > worker_bytes(alone, MODEL, HOST)

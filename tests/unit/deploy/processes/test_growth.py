"""Revisions as a coordinator that starts again finds them: where they are, what they get, and where a rollback goes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from coordinator.cluster.release import Release
from deploy.processes.growth import RevisionGrowth, releases_of
from protocol.messages.launcher import ModelsOrder
from protocol.roles import Role
from protocol.specs import ModelSpec
from tests.sim.launcher import MODEL


def model(name: str) -> ModelSpec:
    prepared = msgspec.structs.replace(MODEL, served_names=(name,))
    return ModelSpec(
        key=name, model=prepared, expected={Role.DECODE: 1}, max_model_len=64, block_size=16
    )


def found_again(release: Release) -> Release:
    """What the launcher was told, and gives to the next coordinator."""
    told: list[ModelsOrder] = []

    def tell(order: ModelsOrder) -> bool:
        told.append(order)
        return True

    models = tuple(model(each.model) for each in release.revisions.values())
    spec, around = SimpleNamespace(no_rollouts="", models=models), SimpleNamespace(tell=tell)
    assert RevisionGrowth(cast("Any", spec), cast("Any", around)).save([release])
    (again,) = releases_of(told[0].models)
    return again


@pytest.mark.parametrize("weight", [10.0, 50.0, 90.0, 100.0])
def test_a_rollback_goes_to_the_stable_one_however_much_its_candidate_had(weight: float) -> None:
    own = Release(["chat"], {"v1": ("chat@v1", 100)})
    coming = own.start("v2", "chat@v2", weight)
    own.prepared(coming)
    own.came(coming)
    again = found_again(own)
    assert again.weights == own.weights
    assert again.rollback().name == "v1"
    assert again.weights == {"v1": 100}


def test_a_promotion_is_taken_back_while_the_loser_is_here() -> None:
    own = Release(["chat"], {"v1": ("chat@v1", 100)})
    coming = own.start("v2", "chat@v2", 10)
    own.prepared(coming)
    own.came(coming)
    own.promote("v2")
    assert found_again(own).rollback().name == "v1"

"""Which models of a plan are revisions, and what one more would be made of. Owns these fields of a coordinator's spec, and why a server
can have no revision added."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from deploy.launch.plan import Plan
from protocol.ids import key_of
from protocol.specs import RevisionSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploy.config.serve_config import ServeConfig


def with_revisions(plan: Plan, configs: Sequence[ServeConfig]) -> Plan:
    """The plan of these models, in order."""
    told = [
        _told(plan, model.key, config)
        for model, config in zip(plan.coordinator.models, configs, strict=True)
    ]
    others = tuple(
        msgspec.structs.replace(model, **fields)
        for model, fields in zip(plan.coordinator.others, told[1:], strict=True)
    )
    coordinator = msgspec.structs.replace(
        plan.coordinator, others=others, no_rollouts=obstacle(plan, configs[0]), **told[0]
    )
    return Plan(coordinator, plan.workers, plan.standby_workers)


def _told(plan: Plan, key: str, config: ServeConfig) -> dict[str, object]:
    version, revision = config.version, None
    if version is not None:
        revision = RevisionSpec(
            names=version.names, revision=version.revision, weight=version.weight
        )
    own = next(w for w in plan.workers if key_of(w.worker_id) == key and w.role.computes)
    pool_bytes, limit = own.kv_cache_bytes, config.max_model_len
    return {"revision": revision, "kv_cache_bytes": pool_bytes, "length_limit": limit}


def obstacle(plan: Plan, config: ServeConfig) -> str:
    """Why no revision can be added while it serves; "" where it can."""
    if config.launcher == "ray":
        return "--launcher ray runs one model: start a second server with the new revision, and move clients there"
    if plan.workers[0].device == "cuda":
        return "workers on GPUs have no memory to spare for a second model: name its revisions under `models:` on CPUs"
    if config.autoscale:
        return "--autoscale sizes the pools of one model: serve without it to roll out a revision"
    if config.enable_lora:
        return "--enable-lora: adapters belong to one model's weights: serve without it to roll out a revision"
    if config.on_demand:
        return (
            "models come and go here: name every revision under `models:`, and change their weights"
        )
    return ""

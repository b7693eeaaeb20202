"""What will run on this host for several models. Owns how cores and memory are shared out among them.

Each model's own plan is `deploy.launch.plan`'s; all of them have one coordinator. What does not fit together is refused as a
whole, before anything is started.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from deploy.config.models import check_names, claimed, keys_of
from deploy.config.values import format_bytes
from deploy.host.affinity import lend_cores, share_cores
from deploy.host.memory import KV_LIMIT, PROCESS_BYTES, default_kv_bytes
from deploy.host.model_memory import weights_bytes
from deploy.launch.adapter_plan import check_modules
from deploy.launch.front_names import check_front_names
from deploy.launch.plan import Plan, planned_step_bytes
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from deploy.config.serve_config import ServeConfig
    from deploy.launch.plan import Host
    from protocol.specs import PreparedModel

    MakePlan = Callable[..., Plan]


def make_fleet_plan(
    configs: Sequence[ServeConfig],
    models: Sequence[PreparedModel],
    host: Host,
    run_directory: Path,
    port: int,
    make_plan: MakePlan,
) -> Plan:
    """One plan of all processes; ConfigError when they do not fit together."""
    versions = [config.version for config in configs]
    served = [model.served_names for model in models]
    check_names(claimed(zip(served, versions, strict=True)))
    called = [c.called(names) for c, names in zip(configs, served, strict=True)]
    check_front_names(configs[0], [name for names in called for name in names])
    if any(config.device != "cpu" for config in configs):
        configs = [replace(config, device="cpu") for config in configs]
    num_workers = sum(config.pools.total for config in configs)
    kv_bytes = default_kv_bytes(host.available_bytes, num_workers)
    sized = [
        config if config.kv_cache_memory is not None else replace(config, kv_cache_memory=kv_bytes)
        for config in configs
    ]
    if configs[0].on_demand:
        check_each_fits(sized, models, host, budget_of(configs[0], host))
    else:
        check_all_fit(sized, models, host)
    shares = share_cores(configs[0].cpu_affinity, num_workers, host.cores, host.quota)
    if configs[0].lend_cores:  # an idle model's cores help the others
        shares = lend_cores(shares)
    plans = []
    keys = keys_of([model.served_names[0] for model in models])
    for config, model, key in zip(sized, models, keys, strict=True):
        own, shares = shares[: config.pools.total], shares[config.pools.total :]
        plan = make_plan(config, model, host, run_directory, port, key=key, shares=own)
        plans.append(_residing(plan, config, model, host))
    plan = joined(plans, configs[0], host)
    check_modules(configs, plan.coordinator.models)
    return plan


def _residing(plan: Plan, config: ServeConfig, model: PreparedModel, host: Host) -> Plan:
    coordinator = msgspec.structs.replace(
        plan.coordinator,
        needed_bytes=needed_bytes(config, model, host),
        worker_bytes=worker_bytes(config, model, host),
        model_keep_alive_s=config.keep_alive,
    )
    return Plan(coordinator, plan.workers, plan.standby_workers)


def budget_of(config: ServeConfig, host: Host) -> int:
    """What all models in memory may take."""
    if config.memory_budget is not None:
        return config.memory_budget
    return int(host.available_bytes * KV_LIMIT)


def joined(plans: Sequence[Plan], config: ServeConfig, host: Host) -> Plan:
    """The first plan's coordinator, who serves the models of all, and everybody's workers."""
    first, *others = plans
    more = tuple(plan.coordinator.models[0] for plan in others)
    coordinator = msgspec.structs.replace(
        first.coordinator,
        others=more,
        memory_budget_bytes=budget_of(config, host) if config.on_demand else None,
        max_loaded_models=config.max_loaded_models,
        models_autoload=config.models_autoload,
    )
    workers = tuple(worker for plan in plans for worker in plan.workers)
    return Plan(coordinator, workers, first.standby_workers)


def needed_bytes(config: ServeConfig, model: PreparedModel, host: Host) -> int:
    """What a model takes while it is loaded: one copy of its weights, its workers' KV pools, and their processes with
    their largest steps."""
    return weights_bytes(model) + config.pools.total * worker_bytes(config, model, host)


def worker_bytes(config: ServeConfig, model: PreparedModel, host: Host) -> int:
    """What each of its workers takes of that."""
    assert config.kv_cache_memory is not None, "sized before"
    step_bytes = planned_step_bytes(config, model, host, has_others=True)
    return config.kv_cache_memory + PROCESS_BYTES + step_bytes


def check_each_fits(
    configs: Sequence[ServeConfig], models: Sequence[PreparedModel], host: Host, budget: int
) -> None:
    """Raise ConfigError for a model that could never be loaded."""
    for config, model in zip(configs, models, strict=True):
        needed = needed_bytes(config, model, host)
        if needed > budget:
            raise ConfigError(
                f"--memory-budget: {model.served_names[0]} needs {format_bytes(needed)} (weights, KV pools and processes), "
                f"more than the {format_bytes(budget)} that models may take; give a smaller --kv-cache-memory or a larger budget"
            )


def check_all_fit(
    configs: Sequence[ServeConfig], models: Sequence[PreparedModel], host: Host
) -> None:
    """Raise ConfigError, with every model's part, when they cannot be had together."""
    needed = [needed_bytes(*both, host) for both in zip(configs, models, strict=True)]
    if sum(needed) > host.available_bytes * KV_LIMIT:
        parts = ", ".join(
            f"{model.served_names[0]} {format_bytes(size)}"
            for model, size in zip(models, needed, strict=True)
        )
        raise ConfigError(
            f"models: {parts} (weights, KV pools and processes) do not fit together in {KV_LIMIT:.0%} of the "
            f"{format_bytes(host.available_bytes)} now available, so none is started; give smaller --kv-cache-memory, fewer "
            "workers (--pd), or fewer models"
        )

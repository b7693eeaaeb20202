"""Where adapters go. Owns that one place of each model serves the coordinator, which fills it, and the workers, which read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from deploy.config.lora import module_of, modules_of
from deploy.config.topology import path_at
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deploy.config.serve_config import ServeConfig
    from protocol.specs import CoordinatorSpec, ModelSpec, WorkerSpec


def with_adapters(
    config: ServeConfig, spec: CoordinatorSpec, workers: tuple[WorkerSpec, ...], key: str
) -> tuple[CoordinatorSpec, tuple[WorkerSpec, ...]]:
    """The specs of the model of that `key`, with adapters where they are asked for. ConfigError where none is computed, on a
    GPU, and for one that cannot be served: before a process is started for it."""
    spec = msgspec.structs.replace(spec, key=key)
    if not config.enable_lora:
        return spec, workers
    from engine.adapters.prepare import check_adapter  # noqa: PLC0415 - numpy only where it is used

    if workers[0].device == "cuda":
        raise ConfigError("--enable-lora: adapters are computed on CPUs only; use --device cpu")
    directory = str(Path(workers[0].run_directory, "adapters", key))
    modules = modules_of(config.lora_modules, spec.model.served_names, is_alone=not key)
    places = {one.name: path_at(one.path, "--lora-modules").absolute() for one in modules}
    for path in places.values():
        check_adapter(path, spec.model.config, config.max_lora_rank)
    spec = msgspec.structs.replace(
        spec,
        adapters_directory=directory,
        lora_modules=tuple((name, str(path)) for name, path in places.items()),
        max_lora_rank=config.max_lora_rank,
    )
    return spec, tuple(
        msgspec.structs.replace(worker, adapters_directory=directory, max_adapters=config.max_loras)
        for worker in workers
    )


def check_modules(configs: Iterable[ServeConfig], models: Iterable[ModelSpec]) -> None:
    """ConfigError where an adapter's name is somebody else's, or no model took the adapter."""
    models = list(models)
    served = [name for model in models for name in model.model.served_names]
    seen = set(served)
    for model in models:
        for name, _ in model.lora_modules:
            if name in seen:
                told = "; say whose it is with base_model_name" if name not in served else ""
                raise ConfigError(f"--lora-modules: the name {name!r} is there twice{told}")
            seen.add(name)
    for module in {
        text: module_of(text) for each in configs for text in each.lora_modules
    }.values():
        if module.name not in seen:
            raise ConfigError(
                f"--lora-modules: {module.name!r} is for the model {module.base_model_name!r}; with adapters are served: "
                f"{', '.join(m.model.served_names[0] for m in models if m.adapters_directory)}"
            )

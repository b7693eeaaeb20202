"""Where adapters go. Owns that one place serves the coordinator, which fills it, and the workers, which read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from deploy.config.lora import modules_of
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from deploy.config.serve_config import ServeConfig
    from protocol.specs import CoordinatorSpec, WorkerSpec


def with_adapters(
    config: ServeConfig, spec: CoordinatorSpec, workers: tuple[WorkerSpec, ...], key: str
) -> tuple[CoordinatorSpec, tuple[WorkerSpec, ...]]:
    """The specs of the model of that `key`, with adapters where they are asked for. ConfigError where none is computed: on a
    GPU, and for one of several models, whose key is not ""."""
    spec = msgspec.structs.replace(spec, key=key)
    if not config.enable_lora:
        return spec, workers
    if workers[0].device == "cuda":
        raise ConfigError("--enable-lora: adapters are computed on CPUs only; use --device cpu")
    if key:
        raise ConfigError("--enable-lora: adapters go with one model; serve it by itself")
    directory = str(Path(workers[0].run_directory, "adapters"))
    modules = modules_of(config.lora_modules, spec.model.served_names)
    spec = msgspec.structs.replace(
        spec,
        adapters_directory=directory,
        lora_modules=tuple(
            (one.name, str(Path(one.path).expanduser().absolute())) for one in modules
        ),
        max_lora_rank=config.max_lora_rank,
    )
    return spec, tuple(
        msgspec.structs.replace(worker, adapters_directory=directory, max_adapters=config.max_loras)
        for worker in workers
    )

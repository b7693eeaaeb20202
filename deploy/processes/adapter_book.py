"""The adapters of a coordinator's models. Owns where the contents of each model's lie, and which of them live requests use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.cluster.residents import HOLD_LIMIT_S
from coordinator.edge.answers.adapters import KEEP_S, AdapterBook, KeptContents
from deploy.config.topology import path_at

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coordinator.cluster.cluster import Cluster
    from protocol.clock import Clock
    from protocol.specs import CoordinatorSpec, ModelSpec


def open_adapters(
    spec: CoordinatorSpec, clusters: Mapping[str, Cluster], clock: Clock, taken: tuple[str, ...]
) -> AdapterBook | None:
    """With those of the command line; None where no model has any. `clusters` by the models' names; no adapter can have a
    name that is `taken`. Raises ConfigError."""
    served = {model.model.served_names[0]: model for model in spec.models}
    contents = {
        name: _contents(model, spec.max_lora_rank, clusters[name])
        for name, model in served.items()
        if model.adapters_directory
    }
    if not contents:
        return None
    names = {alias: name for name, model in served.items() for alias in model.model.served_names}
    waits_s = 0.0 if spec.memory_budget_bytes is None else HOLD_LIMIT_S
    book = AdapterBook(contents, clock, names, KEEP_S + waits_s, taken)
    for name, model in served.items():
        for adapter, path in model.lora_modules:
            book.load_now(adapter, path, name)
    return book


def _contents(spec: ModelSpec, max_rank: int, cluster: Cluster) -> KeptContents:
    from engine.adapters.content import content_path  # noqa: PLC0415 - numpy only where it is used
    from engine.adapters.prepare import prepare_adapter  # noqa: PLC0415

    directory, model = Path(spec.adapters_directory), spec.model

    def prepare(path: str) -> str:
        source = path_at(path, "the adapter's path")
        return prepare_adapter(source, directory, model.config, model.dtype, max_rank)

    def forget(digest: str) -> None:
        content_path(directory, digest).unlink(missing_ok=True)

    def in_use() -> set[str]:
        adapters = (life.generation.adapter for life in cluster.requests)
        return {adapter.digest for adapter in adapters if adapter is not None}

    return KeptContents(prepare, forget, in_use)

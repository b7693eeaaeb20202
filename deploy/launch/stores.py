"""The stores of a plan. Owns how a store's spec differs from a worker's; starts nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from deploy.config.topology import path_at
from protocol.errors import ConfigError
from protocol.ids import key_of
from protocol.roles import Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploy.config.serve_config import ServeConfig
    from protocol.specs import WorkerSpec


def plan_stores(
    config: ServeConfig, like: WorkerSpec, count_blocks: Callable[[int, str], int]
) -> tuple[WorkerSpec, ...]:
    """Workers without a model, of the size that --kv-store says or of `like`, one that computes. They run on any core that
    is free: what they do has time. `count_blocks(bytes, flag)`; ConfigError where they cannot be."""
    if not config.pools.store:
        return ()
    if like.device == "cuda":
        raise ConfigError(
            "--kv-store: a store keeps blocks of workers that compute on the CPU, and these compute on a GPU; "
            "use --device cpu, or leave it out"
        )
    store = config.kv_store
    kv_bytes = like.kv_cache_bytes if store is None else store.dram_bytes
    return tuple(
        msgspec.structs.replace(
            like,
            worker_id=worker_id,
            role=Role.STORE,
            cores=(),
            lent_cores=(),
            num_threads=1,
            kv_cache_bytes=kv_bytes,
            num_blocks=count_blocks(kv_bytes, "--kv-store: dram=") if kv_bytes else 0,
            store_disk_bytes=store.disk_bytes if store else 0,
            store_path=_path_of(store.path, worker_id) if store else "",
        )
        for worker_id in config.pools.store_ids(key_of(like.worker_id))
    )


def path_beside(like: WorkerSpec, worker_id: str) -> str:
    """Where one store more, like that one, keeps its disk tier; "" where it has none."""
    return str(Path(like.store_path).parent / worker_id) if like.store_path else ""


def _path_of(path: str, worker_id: str) -> str:
    """A folder for each: a path belongs to one process."""
    return str(path_at(path, "--kv-store").absolute() / worker_id) if path else ""

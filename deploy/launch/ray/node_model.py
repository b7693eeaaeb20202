"""The model on a node of the cluster. Owns: it is prepared there once, and is the same as everywhere."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from deploy.config.topology import cache_directory
from deploy.host.model_source import DUMMY, OTHER_TEMPLATE, prepare, resolve_dtype
from engine.checkpoints.prepared import read_manifest
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from protocol.specs import PreparedModel


def model_here(model: PreparedModel, source: str) -> PreparedModel:
    """The same model on this node: found where it is elsewhere, or prepared from `source`, by one process at
    a time. ConfigError when it is another model than the rest of the cluster has."""
    if _is_same(Path(model.directory), model):
        return model
    is_dummy = model.weights_hash.startswith(DUMMY)
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "preparing.lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = prepare(
            source,
            model.served_names,
            resolve_dtype(model.dtype),
            cache,
            lambda *_: None,
            [OTHER_TEMPLATE, *([DUMMY] if is_dummy else [])],
        )
    if not _is_same(Path(found.directory), model):
        raise ConfigError(
            f"model: {source!r} is not the same on this node ({found.weights_hash[:12]}) as where Baton was "
            f"started ({model.weights_hash[:12]}); make the files equal"
        )
    return msgspec.structs.replace(model, directory=found.directory)


def _is_same(directory: Path, model: PreparedModel) -> bool:
    try:
        manifest = read_manifest(directory)
    except (OSError, msgspec.MsgspecError, ConfigError):
        return False
    ours = (manifest.weights_hash, manifest.tokenizer_hash, manifest.dtype)
    return ours == (model.weights_hash, model.tokenizer_hash, model.dtype)

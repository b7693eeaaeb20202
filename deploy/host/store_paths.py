"""Whether stores can have the folders that they were given on this host. Owns the question before anything is started; a store
asks again when it opens its log.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kvtransfer.store.disk import PathLock
from protocol.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from protocol.specs import WorkerSpec


def check_store_paths(workers: Iterable[WorkerSpec]) -> None:
    """ConfigError that names the folder, what is wrong with it and what to do. A folder that is missing is made; one that
    cannot be written to is read from, as long as it lasts."""
    for spec in workers:
        if not spec.store_path:
            continue
        try:
            PathLock(Path(spec.store_path)).release()
        except StoreError as error:
            raise ConfigError(f"--kv-store: path=: {error}{_advice(error)}") from error


def _advice(error: StoreError) -> str:
    """Where another process has it, the error says what to do."""
    if not isinstance(error.__cause__, OSError):
        return ""
    return "; name a folder that can be made, or leave disk= and path= out to keep blocks in memory only"

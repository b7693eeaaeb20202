"""A store's folder that cannot be is a sentence before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from deploy.config.serve_config import resolve
from deploy.config.values import GIB
from deploy.host.store_paths import check_store_paths
from deploy.launch.plan import Host, make_plan
from kvtransfer.store.disk import PathLock
from protocol.errors import ConfigError
from tests.e2e.launcher_driver import MODEL

if TYPE_CHECKING:
    from protocol.specs import WorkerSpec


def workers_with(path: Path) -> tuple[WorkerSpec, ...]:
    store = f"dram=64MiB,disk=64MiB,path={path}"
    options = {"kv-cache-memory": "64MiB", "pd": "1p1d1s", "kv-store": store}
    config = resolve(options, {}).config
    host = Host((0, 1), None, 16 * GIB)
    return make_plan(config, MODEL, host, Path("/tmp/run"), 8000).workers


def test_a_folder_that_is_missing_is_made_and_its_lock_is_free(tmp_path: Path) -> None:
    check_store_paths(workers_with(tmp_path / "new" / "kv"))
    PathLock(tmp_path / "new" / "kv" / "store-0").release()


def test_a_file_in_its_way_is_named_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError) as raised:
        check_store_paths(workers_with(tmp_path / "file"))
    assert str(raised.value) == (
        f"--kv-store: path=: {tmp_path}/file/store-0 cannot hold KV blocks: Not a directory; "
        "name a folder that can be made, or leave disk= and path= out to keep blocks in memory only"
    )


def test_one_that_another_store_uses_is_named_with_its_process(tmp_path: Path) -> None:
    lock = PathLock(tmp_path / "store-0")
    try:
        with pytest.raises(ConfigError, match=r"is used by process \d+: end it, or give this"):
            check_store_paths(workers_with(tmp_path))
    finally:
        lock.release()


def test_workers_without_a_disk_are_not_asked() -> None:
    plain = [msgspec.structs.replace(w, store_path="") for w in workers_with(Path("/proc/none"))]
    check_store_paths(plain)

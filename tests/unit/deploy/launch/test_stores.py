"""The stores of a plan: as large as was asked for, on no cores of their own, each with a folder of its own."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from deploy.config.serve_config import resolve
from deploy.config.values import GIB, MIB
from deploy.launch.plan import Host, make_plan
from deploy.launch.stores import plan_stores
from protocol.errors import ConfigError
from protocol.roles import Role
from protocol.specs import WorkerSpec
from tests.e2e.launcher_driver import MODEL

HOST = Host((0, 1), None, 16 * GIB)


def stores(**options: str) -> list[WorkerSpec]:
    named = {name.replace("_", "-"): value for name, value in options.items()}
    config = resolve({"kv-cache-memory": "64MiB", **named}, {}).config
    plan = make_plan(config, MODEL, HOST, Path("/tmp/run"), 8000)
    return [worker for worker in plan.workers if worker.role is Role.STORE]


def test_without_a_store_none_is_planned() -> None:
    assert stores(pd="1p1d") == []


def test_a_store_is_as_large_as_it_says_and_computes_on_no_cores_of_its_own() -> None:
    (store,) = stores(pd="1p1d1s", kv_store="dram=256MiB")
    assert (store.kv_cache_bytes, store.cores, store.lent_cores) == (256 * MIB, (), ())
    assert store.num_blocks > 0
    assert (store.store_disk_bytes, store.store_path) == (0, "")


def test_a_store_that_says_no_size_is_as_large_as_a_worker() -> None:
    (store,) = stores(pd="1p1d1s")
    assert store.kv_cache_bytes == 64 * MIB


def test_each_of_several_stores_has_a_folder_of_its_own() -> None:
    found = stores(pd="1p1d2s", kv_store="dram=64MiB,disk=1GiB,path=/var/kv")
    assert [store.store_path for store in found] == ["/var/kv/store-0", "/var/kv/store-1"]
    assert {store.store_disk_bytes for store in found} == {GIB}


def test_a_path_is_absolute_in_the_plan() -> None:
    (store,) = stores(pd="1p1d1s", kv_store="dram=64MiB,disk=1GiB,path=~/kv")
    assert store.store_path == str(Path("~/kv").expanduser() / "store-0")


def test_memory_that_holds_no_block_is_refused_by_its_flag() -> None:
    with pytest.raises(ConfigError, match="--kv-store: dram="):
        stores(pd="1p1d1s", kv_store="dram=1000")


def test_a_store_beside_gpu_workers_is_refused() -> None:
    config = resolve({"pd": "1p1d1s"}, {}).config
    (like, *_) = make_plan(
        resolve({"pd": "1p1d", "kv-cache-memory": "64MiB"}, {}).config,
        MODEL,
        HOST,
        Path("/tmp/run"),
        8000,
    ).workers
    on_gpu = msgspec.structs.replace(like, device="cuda")
    with pytest.raises(
        ConfigError, match="--kv-store: a store keeps blocks of workers that compute on the CPU"
    ):
        plan_stores(config, on_gpu, lambda size, flag: 1)

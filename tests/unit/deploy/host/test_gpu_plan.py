"""Workers on GPUs: which one each gets, and what its pool may take. No GPU is needed to plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import deploy.launch.plan
from benchmarks.gpu_bench.shapes import SHAPES
from deploy.config.serve_config import resolve
from deploy.config.values import parse_utilization
from deploy.host.gpu_plan import (
    assign,
    check_free,
    gpu_part,
    least_used,
    pool_bytes_on,
)
from deploy.host.gpus import Gpu, choose
from deploy.launch.plan import Host, device_of, make_plan
from engine.cuda.sizing import reserve_bytes, weight_bytes
from protocol.errors import ConfigError
from protocol.roles import Role
from protocol.specs import PreparedModel

GIB = 1 << 30
GPUS = tuple(Gpu(f"GPU-{letter}", "H100", 80 * GIB, 79 * GIB) for letter in "abc")
CONFIG = SHAPES["llama-8b"]
MODEL = PreparedModel(
    name="llama",
    served_names=("llama",),
    directory="/nowhere",
    config=CONFIG,
    dtype="bfloat16",
    weights_hash="w",
    tokenizer_hash="t",
)


@pytest.fixture(autouse=True)
def usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with CUDA's torch, whatever is installed here."""
    monkeypatch.setattr(
        deploy.launch.plan, "obstacle", lambda gpus: None if gpus else "no NVIDIA GPU"
    )


def host(gpus: tuple[Gpu, ...] = GPUS) -> Host:
    return Host((0, 1, 2, 3), None, 64 * GIB, gpus)


def plan(gpus: tuple[Gpu, ...] = GPUS, **flags: Any) -> Any:
    config = resolve({name.replace("_", "-"): value for name, value in flags.items()}, {}).config
    return make_plan(config, MODEL, host(gpus), Path("/run"), 8000)


def test_numbers_and_uuids_choose_gpus_as_cuda_does() -> None:
    assert choose(GPUS, None) == GPUS
    assert choose(GPUS, "2,0") == (GPUS[2], GPUS[0])
    assert choose(GPUS, "GPU-b") == (GPUS[1],)
    assert choose(GPUS, "1,7,0") == (GPUS[1],), "the first that is none ends the list"
    assert choose(GPUS, "") == ()


def test_workers_get_a_gpu_each_while_they_last() -> None:
    assert [gpu.uuid for gpu in assign(5, GPUS)] == ["GPU-a", "GPU-b", "GPU-c", "GPU-a", "GPU-b"]


def test_llama_8b_takes_what_its_shapes_say() -> None:
    assert weight_bytes(CONFIG, 2) == 2 * 8_030_261_248
    assert 2 * GIB < reserve_bytes(CONFIG, 8192, 256) < 8 * GIB


def test_one_gpu_is_shared_and_its_parts_fit() -> None:
    made = plan(GPUS[:1], pd="1p1d", gpu_memory_utilization="0.9")
    assert {worker.visible_devices for worker in made.workers} == {"GPU-a"}
    assert {worker.device for worker in made.workers} == {"cuda"}
    fixed = weight_bytes(CONFIG, 2) + reserve_bytes(CONFIG, 8192, 256)
    assert sum(worker.kv_cache_bytes + fixed for worker in made.workers) <= 72 * GIB
    assert made.workers[0].max_num_batched_tokens == 8192
    assert made.workers[0].max_num_seqs == 256


def test_each_role_can_have_its_part() -> None:
    prefill, decode = plan(GPUS[:1], gpu_memory_utilization="prefill=0.35,decode=0.6").workers
    assert decode.num_blocks > 2 * prefill.num_blocks
    assert decode.max_model_len == prefill.max_model_len <= prefill.num_blocks * 16


def test_part_that_holds_nothing_is_refused_with_the_sum() -> None:
    with pytest.raises(ConfigError, match=r"15\.0 GiB of weights.*--pd"):
        plan(GPUS[:1], pd="2p2d")


def test_gpu_in_use_is_told_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"30\.0 GiB are free; end what uses it"):
        check_free([Gpu("GPU-a", "H100", 80 * GIB, 30 * GIB)], {"GPU-a": 40 * GIB})


def test_pool_of_a_given_size_must_fit_too() -> None:
    made = plan(GPUS[:1], kv_cache_memory="8GiB")
    assert {worker.kv_cache_bytes for worker in made.workers} == {8 * GIB}
    with pytest.raises(ConfigError, match="--kv-cache-memory"):
        plan(GPUS[:1], kv_cache_memory="60GiB")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1.2", "between 0 and 1"),
        ("0", "between 0 and 1"),
        ("much", "not a number"),
        ("prefill=0.3", "one role only"),
        ("prefil=0.3,decode=0.6", "no role"),
    ],
)
def test_bad_parts_are_named(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_utilization(text)


def test_auto_takes_a_gpu_and_says_cpu_without_one() -> None:
    auto, cpu, cuda = (resolve({"device": device}, {}).config for device in ("auto", "cpu", "cuda"))
    assert device_of(auto, host()) == "cuda"
    assert device_of(auto, host(())) == "cpu"
    assert device_of(cpu, host()) == "cpu"
    with pytest.raises(ConfigError, match="--device cuda: no NVIDIA GPU"):
        device_of(cuda, host(()))


def test_flags_that_contradict_the_device_are_refused() -> None:
    assert device_of(resolve({"backend": "torch"}, {}).config, host()) == "cpu"
    with pytest.raises(ConfigError, match="--backend torch"):
        device_of(resolve({"device": "cuda", "backend": "torch"}, {}).config, host())
    with pytest.raises(ConfigError, match="--load-format"):
        device_of(resolve({"load-format": "dummy"}, {}).config, host(()))


def test_one_worker_more_goes_to_the_gpu_with_the_fewest() -> None:
    made = plan(GPUS[:2], pd="2p1d")
    assert least_used(made.workers, made.workers[0]) == "GPU-b"
    assert least_used((), made.workers[1]) == "GPU-b"


def test_ray_reserves_the_part_of_a_gpu_that_a_worker_has() -> None:
    assert gpu_part(plan(GPUS[:1], pd="1p1d").workers) == 0.5
    assert gpu_part(plan(GPUS, pd="1p1d").workers) == 1.0


def test_small_pool_is_what_is_left() -> None:
    utilization = parse_utilization("0.5")
    left = pool_bytes_on(GPUS[0], Role.DECODE, 1, utilization, MODEL, (8192, 256))
    fixed = weight_bytes(CONFIG, 2) + reserve_bytes(CONFIG, 8192, 256)
    assert left == 40 * GIB - fixed

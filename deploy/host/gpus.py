"""Which NVIDIA GPUs workers may use. Owns the questions to NVML; torch-free, and takes nothing on any GPU."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from deploy.config.topology import visible_devices


@dataclass(frozen=True)
class Gpu:
    """One GPU as it is now; `uuid` is what CUDA_VISIBLE_DEVICES may name."""

    uuid: str
    name: str
    total_bytes: int
    free_bytes: int


def find_gpus() -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves, all without it; none where there is no driver."""
    try:
        import pynvml  # noqa: PLC0415 - only a machine that has a GPU needs it
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return choose(tuple(_gpu(pynvml, handle) for handle in handles), visible_devices())
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: Any, handle: Any) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
    return Gpu(str(uuid), str(name), int(memory.total), int(memory.free))


def choose(gpus: tuple[Gpu, ...], visible: str | None) -> tuple[Gpu, ...]:
    """What CUDA_VISIBLE_DEVICES means: numbers or beginnings of UUIDs, up to the first that is neither."""
    if visible is None:
        return gpus
    chosen: list[Gpu] = []
    for word in (part.strip() for part in visible.split(",")):
        if word.isdigit():
            found = gpus[int(word)] if int(word) < len(gpus) else None
        else:
            found = next((gpu for gpu in gpus if word and gpu.uuid.startswith(word)), None)
        if found is None:
            break
        chosen.append(found)
    return tuple(chosen)


def obstacle(gpus: tuple[Gpu, ...]) -> str | None:
    """Why workers cannot compute on a GPU here; None when they can."""
    if not gpus:
        return "no NVIDIA GPU is visible (nvidia-smi and CUDA_VISIBLE_DEVICES tell which there are)"
    try:
        torch_version = version("torch")
    except PackageNotFoundError:
        return "torch is not installed"
    if torch_version.endswith("+cpu"):
        return f"torch {torch_version} is built without CUDA: install the CUDA build of torch"
    if find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    return None

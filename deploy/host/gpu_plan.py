"""How workers share the GPUs of a host, and what is left for their KV pools. Pure.

a GPU   [ prefill-0: weights | activations | KV pool ][ decode-0: weights | activations | KV pool ][ free ]
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from deploy.config.values import format_bytes
from engine.checkpoints.prepared import ELEMENT_BYTES
from engine.cuda.sizing import reserve_bytes, weight_bytes
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploy.config.values import Utilization
    from deploy.host.gpus import Gpu
    from protocol.roles import Role
    from protocol.specs import PreparedModel, WorkerSpec


def assign(num_workers: int, gpus: Sequence[Gpu]) -> list[Gpu]:
    """A GPU for each worker: one each while they last, then shared evenly."""
    return [gpus[index % len(gpus)] for index in range(num_workers)]


def least_used(workers: Sequence[WorkerSpec], first: WorkerSpec) -> str | None:
    """Of the GPUs in use the one with the fewest workers, for one worker more like `first`."""
    uses = Counter(worker.visible_devices for worker in workers if worker.visible_devices)
    if not uses:
        return first.visible_devices
    return min(uses, key=lambda uuid: (uses[uuid], uuid))


def gpu_part(workers: Sequence[WorkerSpec]) -> float:
    """Of a GPU for each worker, where they share GPUs as these do."""
    uses = Counter(worker.visible_devices for worker in workers)
    return 1.0 / max(uses.values())


def pool_bytes_on(
    gpu: Gpu,
    role: Role,
    num_sharing: int,
    utilization: Utilization,
    model: PreparedModel,
    limits: tuple[int, int],
) -> int:
    """Bytes of a worker's KV pool there; `limits` are its batched tokens and sequences. ConfigError with the sum
    when nothing is left."""
    share = int(utilization.part(role, num_sharing) * gpu.total_bytes)
    element_bytes = ELEMENT_BYTES["bfloat16" if model.dtype == "bfloat16" else "float32"]
    weights = weight_bytes(model.config, element_bytes)
    reserve = reserve_bytes(model.config, *limits)
    left = share - weights - reserve
    if left <= 0:
        raise ConfigError(
            f"--gpu-memory-utilization: a {role} worker's {format_bytes(share)} of {gpu.name} do not hold "
            f"{format_bytes(weights)} of weights and {format_bytes(reserve)} for computing; give it a larger part, "
            "put fewer workers on the GPU (--pd), or lower --max-num-batched-tokens"
        )
    return left


def check_free(gpus: Sequence[Gpu], taken: dict[str, int]) -> None:
    """Raise ConfigError when a GPU has less free now than its workers will take; `taken` by UUID."""
    for gpu in gpus:
        needed = taken.get(gpu.uuid, 0)
        if needed > gpu.free_bytes:
            raise ConfigError(
                f"--gpu-memory-utilization: the workers would take {format_bytes(needed)} of {gpu.name}, and "
                f"{format_bytes(gpu.free_bytes)} are free; end what uses it (nvidia-smi), or give a smaller part"
            )

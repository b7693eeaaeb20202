"""What `baton bench engine` asks its measuring process for. Torch-free, so that the parent starts quickly."""

from __future__ import annotations

import msgspec

from protocol.quantization import Quantization


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """`directory` is a prepared model; lengths and sizes are tokens and sequences. `lent_cores` help as another
    worker's would that sleeps all the time."""

    directory: str
    kernel_cache: str
    backend: str = "auto"
    threads: int = 1
    quantization: Quantization = Quantization.NONE
    lent_cores: tuple[int, ...] = ()
    block_size: int = 16
    chunk: int = 512
    prompts: tuple[int, ...] = (128, 512, 2048)
    batches: tuple[int, ...] = (1, 4, 8, 16)
    contexts: tuple[int, ...] = (128, 512, 1024)
    steps: int = 15
    repeats: int = 3

"""Adapters made of random numbers, without a file of PEFT. Owns no assertion."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from engine.adapters.content import (
    FORMAT_VERSION,
    ContentHeader,
    PartPlace,
    aligned,
    map_content,
    panels,
    write_content,
)
from engine.adapters.modules import modules_of

if TYPE_CHECKING:
    from pathlib import Path

    from engine.adapters.content import Content, Elements
    from protocol.model_config import ModelConfig


def random_content(
    directory: Path,
    config: ModelConfig,
    dtype: str,
    rank: int,
    modules: str = ".*",
    seed: int = 0,
    spread: float = 0.5,
) -> Content:
    """Of the modules whose name the pattern matches."""
    rng, offset = np.random.default_rng([seed, rank]), 0
    parts: list[PartPlace] = []
    blocks: list[Elements] = []
    for module in modules_of(config):
        if not re.fullmatch(modules, module.name):
            continue
        shapes = (rank, module.inputs), (module.outputs, rank)
        pair = [
            panels((rng.standard_normal(shape) * size).astype(np.float32), dtype)
            for shape, size in zip(shapes, (module.inputs**-0.5, spread * rank**-0.5), strict=True)
        ]
        places = offset, aligned(offset + pair[0].nbytes)
        offset = aligned(places[1] + pair[1].nbytes)
        blocks += pair
        parts.append(
            PartPlace(
                layer=module.layer,
                matrix=module.matrix,
                first=module.first,
                outputs=module.outputs,
                inputs=module.inputs,
                rank=rank,
                a=places[0],
                b=places[1],
            )
        )
    header = ContentHeader(format_version=FORMAT_VERSION, dtype=dtype, parts=tuple(parts))
    return map_content(directory, write_content(directory, header, blocks))

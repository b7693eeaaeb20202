"""A prepared model of any shape with random weights: speed without a download. Owns nothing but the drawing.

usage: python -m benchmarks.random_model CONFIG_JSON DTYPE DIRECTORY
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any, get_args

import msgspec
import torch

from engine.checkpoints.fields import read_object
from engine.checkpoints.hugging_face_config import parse_config
from engine.checkpoints.prepared import (
    ALIGNMENT_BYTES,
    FORMAT_VERSION,
    MANIFEST_NAME,
    WEIGHTS_NAME,
    Dtype,
    PreparedManifest,
    TensorPlace,
)
from engine.checkpoints.weight_shapes import plan_tensors
from protocol.errors import ConfigError

SPREAD = 0.02
_MAX_CONFIG_BYTES = 1 << 24


def write_random(config_file: Path, dtype: str, directory: Path) -> None:
    """`directory` holds weights.bin and model.json then; it has no tokenizer."""
    if dtype not in get_args(Dtype):
        raise ConfigError(f"--dtype: {dtype!r} is not one of {', '.join(get_args(Dtype))}")
    config = parse_config(read_object(config_file, _MAX_CONFIG_BYTES), str(config_file))
    generator = torch.Generator().manual_seed(5)
    places: dict[str, TensorPlace] = {}
    with (directory / WEIGHTS_NAME).open("wb") as file:
        for name, shape, _ in plan_tensors(config):
            file.write(b"\0" * (-file.tell() % ALIGNMENT_BYTES))
            places[name] = TensorPlace(offset=file.tell(), shape=shape)
            values = torch.randn(shape, generator=generator).mul_(SPREAD) + name.endswith("norm")
            file.write(values.to(getattr(torch, dtype)).flatten().view(torch.uint8).numpy().data)
        file.write(b"\0" * (-file.tell() % ALIGNMENT_BYTES))
    told: dict[str, Any] = {"config": config, "dtype": dtype, "tensors": places}
    name = hashlib.blake2b(msgspec.json.encode(told), digest_size=16).hexdigest()
    manifest = PreparedManifest(
        format_version=FORMAT_VERSION,
        source=str(config_file),
        weights_hash=name,
        tokenizer_hash=name,
        **told,
    )
    (directory / MANIFEST_NAME).write_bytes(msgspec.json.encode(manifest))


if __name__ == "__main__":
    write_random(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))

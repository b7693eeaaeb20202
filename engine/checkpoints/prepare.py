"""Making a prepared directory from a checkpoint. Owns conversion and fusing; reading it back is engine.checkpoints.prepared.

The directory appears whole or not at all: it is written beside its place under a lock and renamed.
q, k and v become one tensor, gate and up another: one matrix product each.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch

from engine.checkpoints.embedded import locked
from engine.checkpoints.prepared import (
    ALIGNMENT_BYTES,
    FORMAT_VERSION,
    MANIFEST_NAME,
    WEIGHTS_NAME,
    PreparedManifest,
    TensorPlace,
    find_prepared,
    prepared_directory,
)
from engine.checkpoints.progress import PrepareStage
from engine.checkpoints.source import open_checkpoint
from engine.checkpoints.weight_shapes import plan_tensors

if TYPE_CHECKING:
    from typing import BinaryIO

    from engine.checkpoints.checkpoint import Checkpoint
    from engine.checkpoints.prepared import Dtype
    from engine.checkpoints.progress import Progress
    from engine.checkpoints.stored_tensor import StoredTensor
    from protocol.model_config import ModelConfig

_RAW_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}


def prepare(
    source: Path,
    cache_root: Path,
    dtype: Dtype,
    progress: Progress,
    *,
    is_dummy: bool = False,
    checkpoint: Checkpoint | None = None,
) -> Path:
    """The prepared directory of `source` (Hugging Face directory or .gguf), made if it is not there.

    `progress(stage, fraction)`. A dummy has a shape and a tokenizer only. `checkpoint` is the source where it has been
    opened before. ConfigError when the source cannot be served.
    """
    target = prepared_directory(source, cache_root, dtype, is_dummy=is_dummy)
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(target.name + ".lock")):
        if find_prepared(source, cache_root, dtype, is_dummy=is_dummy) is None:
            opened = checkpoint or open_checkpoint(source, with_weights=not is_dummy)
            _prepare_into(target, source, opened, dtype, None if is_dummy else progress)
    return target


def _prepare_into(
    target: Path,
    source: Path,
    checkpoint: Checkpoint,
    dtype: Dtype,
    progress: Progress | None,
) -> None:
    """Without `progress` the weights are left out."""
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        for name, content in checkpoint.files.items():
            (partial / name).write_bytes(content)
        places: dict[str, TensorPlace] = {}
        weights_hash = _dummy_hash(checkpoint.config, dtype)
        if progress is not None:
            path = partial / WEIGHTS_NAME
            places, weights_hash = _write_weights(path, checkpoint, dtype, progress)
        manifest = PreparedManifest(
            format_version=FORMAT_VERSION,
            source=str(source),
            config=checkpoint.config,
            dtype=dtype,
            weights_hash=weights_hash,
            tokenizer_hash=_file_hash(partial / "tokenizer.json"),
            tensors=places,
            warnings=tuple(checkpoint.warnings),
        )
        (partial / MANIFEST_NAME).write_bytes(msgspec.json.encode(manifest))
        shutil.rmtree(target, ignore_errors=True)
        partial.chmod(0o755)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read(stored: StoredTensor) -> torch.Tensor:
    dtype, values = stored.read()
    if isinstance(values, memoryview):
        flat = torch.frombuffer(bytearray(values), dtype=_RAW_DTYPES[dtype])
        return flat.reshape(stored.shape)
    return torch.from_numpy(np.array(values))


def _write_weights(
    path: Path, checkpoint: Checkpoint, dtype: Dtype, progress: Progress
) -> tuple[dict[str, TensorPlace], str]:
    places: dict[str, TensorPlace] = {}
    digest = hashlib.blake2b(dtype.encode(), digest_size=16)
    plan = list(plan_tensors(checkpoint.config))
    with path.open("wb") as file:
        for done, (name, shape, sources) in enumerate(plan):
            parts = [
                _read(checkpoint.tensors[source]).to(getattr(torch, dtype)) for source in sources
            ]
            value = torch.cat(parts) if len(parts) > 1 else parts[0]
            places[name] = TensorPlace(offset=_pad(file), shape=shape)
            data = value.contiguous().flatten().view(torch.uint8).numpy().data
            digest.update(f"{name}{shape}".encode())
            digest.update(data)
            file.write(data)
            progress(PrepareStage.CONVERT, (done + 1) / len(plan))
        _pad(file)
    return places, digest.hexdigest()


def _dummy_hash(config: ModelConfig, dtype: Dtype) -> str:
    """Dummy weights follow from the shape: engine.cuda.dummy_weights."""
    shape = msgspec.json.encode(config) + dtype.encode()
    return f"dummy-{hashlib.blake2b(shape, digest_size=8).hexdigest()}"


def _pad(file: BinaryIO) -> int:
    file.write(b"\0" * (-file.tell() % ALIGNMENT_BYTES))
    return file.tell()


def _file_hash(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()

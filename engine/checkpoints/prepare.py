"""Making a prepared directory from a checkpoint. Owns conversion and fusing; reading it back is engine.checkpoints.prepared.

The directory appears whole or not at all: it is written beside its place under a lock and renamed.
q, k and v become one tensor, gate and up another: one matrix product each.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import torch

from engine.checkpoints.embedded import locked
from engine.checkpoints.gguf_file import GgufFile
from engine.checkpoints.gguf_tokenizer import build_tokenizer, tokenizer_settings
from engine.checkpoints.hugging_face import RawTensor, read_config, read_tensors
from engine.checkpoints.prepared import (
    ALIGNMENT_BYTES,
    FORMAT_VERSION,
    MANIFEST_NAME,
    SIDE_FILES,
    WEIGHTS_NAME,
    PreparedManifest,
    TensorPlace,
    find_prepared,
    prepared_directory,
)
from engine.model.weight_shapes import plan_tensors
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    import numpy.typing as npt

    from engine.checkpoints.prepared import Dtype
    from protocol.model_config import ModelConfig

_RAW_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def prepare(
    source: Path,
    cache_root: Path,
    dtype: Dtype,
    progress: Callable[[str, float], None],
    *,
    is_dummy: bool = False,
) -> Path:
    """The prepared directory of `source` (Hugging Face directory or .gguf), made if it is not there.

    `progress(stage, fraction)`. A dummy has a shape and a tokenizer only. ConfigError when the source cannot be
    served.
    """
    target = prepared_directory(source, cache_root, dtype, is_dummy=is_dummy)
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(target.name + ".lock")):
        if find_prepared(source, cache_root, dtype, is_dummy=is_dummy) is None:
            _prepare_into(target, source, dtype, None if is_dummy else progress)
    return target


def _prepare_into(
    target: Path, source: Path, dtype: Dtype, progress: Callable[[str, float], None] | None
) -> None:
    """Without `progress` the weights are left out."""
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        if source.is_dir():
            config = read_config(source)
            raws = () if progress is None else read_tensors(source)
            tensors: dict[str, Callable[[], torch.Tensor]] = {
                name: functools.partial(_from_raw, raw) for name, raw in raws
            }
            _copy_side_files(source, partial)
        else:
            file = GgufFile(source)
            config = file.config()
            tensors = {name: functools.partial(_from_numpy, read) for name, read in file.tensors()}
            _write_gguf_side_files(file, config, partial)
        places: dict[str, TensorPlace] = {}
        weights_hash = _dummy_hash(config, dtype)
        if progress is not None:
            path = partial / WEIGHTS_NAME
            places, weights_hash = _write_weights(path, config, tensors, dtype, progress)
        manifest = PreparedManifest(
            format_version=FORMAT_VERSION,
            source=str(source),
            config=config,
            dtype=dtype,
            weights_hash=weights_hash,
            tokenizer_hash=_file_hash(partial / "tokenizer.json"),
            tensors=places,
        )
        (partial / MANIFEST_NAME).write_bytes(msgspec.json.encode(manifest))
        shutil.rmtree(target, ignore_errors=True)
        partial.chmod(0o755)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _from_raw(raw: RawTensor) -> torch.Tensor:
    flat = torch.frombuffer(bytearray(raw.data), dtype=_RAW_DTYPES[raw.dtype])
    return flat.reshape(raw.shape)


def _from_numpy(read: Callable[[], npt.NDArray[np.float32]]) -> torch.Tensor:
    return torch.from_numpy(np.array(read()))


def _copy_side_files(source: Path, partial: Path) -> None:
    if not (source / "tokenizer.json").exists():
        raise ConfigError(f"{source} has no tokenizer.json; save a fast tokenizer there first")
    for name in ("tokenizer.json", *SIDE_FILES):
        if (source / name).exists():
            shutil.copyfile(source / name, partial / name)


def _write_gguf_side_files(file: GgufFile, config: ModelConfig, partial: Path) -> None:
    build_tokenizer(file).save(str(partial / "tokenizer.json"))
    settings = tokenizer_settings(file)
    generation = {"eos_token_id": list(config.eos_token_ids), "bos_token_id": config.bos_token_id}
    for name, value in (("tokenizer_config", settings), ("generation_config", generation)):
        (partial / f"{name}.json").write_text(json.dumps(value, indent=1), encoding="utf-8")
    template = file.get("tokenizer.chat_template")
    if template is not None:
        (partial / "chat_template.jinja").write_text(template, encoding="utf-8")


def _write_weights(
    path: Path,
    config: ModelConfig,
    tensors: dict[str, Callable[[], torch.Tensor]],
    dtype: Dtype,
    progress: Callable[[str, float], None],
) -> tuple[dict[str, TensorPlace], str]:
    places: dict[str, TensorPlace] = {}
    digest = hashlib.blake2b(dtype.encode(), digest_size=16)
    plan = list(plan_tensors(config))
    with path.open("wb") as file:
        for done, (name, shape, sources) in enumerate(plan):
            missing = [source for source in sources if source not in tensors]
            if missing:
                raise ConfigError(f"the checkpoint lacks the tensor {missing[0]}")
            parts = [tensors[source]().to(getattr(torch, dtype)) for source in sources]
            value = torch.cat(parts) if len(parts) > 1 else parts[0]
            if tuple(value.shape) != shape:
                raise ConfigError(f"{sources[0]} has shape {tuple(value.shape)}, expected {shape}")
            places[name] = TensorPlace(offset=_pad(file), shape=shape)
            data = value.contiguous().flatten().view(torch.uint8).numpy().data
            digest.update(f"{name}{shape}".encode())
            digest.update(data)
            file.write(data)
            progress("convert", (done + 1) / len(plan))
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

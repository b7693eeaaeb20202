"""Finding and reading a prepared model. Owns the layout of a prepared directory; torch-free, so a coordinator can use it.

    <cache_root>/prepared/<key>/        key = hash(source path, size, mtime, dtype, FORMAT_VERSION)
        model.json                      PreparedManifest
        weights.bin                     plain tensors in `dtype`, each at a multiple of 4096 bytes
        tokenizer.json  tokenizer_config.json  generation_config.json  chat_template.jinja
        panels<columns>-gated.bin       the matrices as the CPU's kernels read them, made on first use

Format history: 1 first; 2 more rotary kinds, `output_bias`, warnings, ends of sequence of every source; 3 fields of a wrong
type are refused; 4 tokens of tokenizer_config.json that tokenizer.json lacks, too;
5 a GGUF file's `rope.scaling.type` none is none beside a factor, too;
6 its special tokens have SentencePiece's ids where it names none, and its tokens must have kinds;
7 special_tokens_map.json counts, and special tokens that are only words of the vocabulary. What a source is read as is part of the format: `tests/house/readings.py` remembers it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

import msgspec

from engine.checkpoints.gguf_parts import part_paths
from protocol.errors import ConfigError
from protocol.fingerprint import Fingerprint
from protocol.model_config import ModelConfig

if TYPE_CHECKING:
    from pathlib import Path

FORMAT_VERSION = 7
MANIFEST_NAME = "model.json"
WEIGHTS_NAME = "weights.bin"
ALIGNMENT_BYTES = 4096

Dtype = Literal["float32", "bfloat16"]
ELEMENT_BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2}


class TensorPlace(msgspec.Struct, frozen=True, kw_only=True):
    """Where a tensor lies in weights.bin: byte offset, and shape in elements."""

    offset: int
    shape: tuple[int, ...]


class PreparedManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What model.json says. `weights_hash` covers the bytes of weights.bin and its table. Without
    `tensors` the weights are random, made by the engine. `warnings` are for whoever starts a server with it."""

    format_version: int
    source: str
    config: ModelConfig
    dtype: Dtype
    weights_hash: str
    tokenizer_hash: str
    tensors: dict[str, TensorPlace]
    warnings: tuple[str, ...] = ()


def _stamp(path: Path) -> str:
    """A link that leads nowhere has a stamp, too: whoever reads the model says what is wrong with it."""
    try:
        info = path.stat()
    except OSError as error:
        return f"{path.name}:{error.strerror}"
    return f"{path.name}:{info.st_size}:{info.st_mtime_ns}"


def source_files(source: Path) -> list[Path]:
    """The files whose change makes a prepared directory stale; ConfigError when `source` is no model."""
    if source.is_file() and source.suffix == ".gguf":
        return [part for part in part_paths(source) if part.exists()]
    if source.is_dir():
        patterns = ("*.safetensors", "*.json", "*.jinja", "additional_chat_templates/*.jinja")
        return sorted(path for pattern in patterns for path in source.glob(pattern))
    raise ConfigError(
        f"{source} is neither a .gguf file nor a directory with config.json and safetensors"
    )


def prepared_directory(
    source: Path, cache_root: Path, dtype: Dtype, *, is_dummy: bool = False
) -> Path:
    """Where the prepared form of `source` belongs, whether it is there or not; the dummy form has no weights. A link is
    followed, but its own name tells what it is and what its other parts are called: a hub's cache has links to nameless files."""
    own = [str(source.resolve()), dtype, str(FORMAT_VERSION)]
    parts = [*own, *map(_stamp, source_files(source))]
    key = hashlib.blake2b("\n".join(parts).encode(), digest_size=12).hexdigest()
    kind = f"{dtype}-dummy" if is_dummy else dtype
    return cache_root / "prepared" / f"{source.stem}-{kind}-{key}"


def find_prepared(
    source: Path, cache_root: Path, dtype: Dtype, *, is_dummy: bool = False
) -> Path | None:
    """The prepared directory of `source` if it is complete, else None."""
    directory = prepared_directory(source, cache_root, dtype, is_dummy=is_dummy)
    return directory if (directory / MANIFEST_NAME).exists() else None


def read_manifest(directory: Path) -> PreparedManifest:
    """model.json of a prepared directory; ConfigError when it is missing or of another format."""
    try:
        raw = (directory / MANIFEST_NAME).read_bytes()
        manifest = msgspec.json.decode(raw, type=PreparedManifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"{directory} is not a prepared model ({error}); delete it and start again"
        ) from error
    if manifest.format_version != FORMAT_VERSION:
        raise ConfigError(
            f"{directory} has format {manifest.format_version}, this version reads "
            f"{FORMAT_VERSION}; delete it and start again"
        )
    return manifest


def kv_block_bytes(config: ModelConfig, block_size: int, dtype: Dtype) -> int:
    """Bytes of one KV block: `block_size` tokens, all layers, keys and values."""
    return block_size * config.kv_bytes_per_token(ELEMENT_BYTES[dtype])


def fingerprint(prepared: Path, block_size: int) -> Fingerprint:
    """What a worker that serves `prepared` must agree on with its peers."""
    manifest = read_manifest(prepared)
    config = manifest.config
    rope = msgspec.json.encode(config.rope_scaling).decode()
    return Fingerprint(
        model=f"{config.family}-{config.num_layers}x{config.hidden_size}",
        weights=manifest.weights_hash,
        tokenizer=manifest.tokenizer_hash,
        dtype=manifest.dtype,
        layout="block:layer:kv:head:token:dim",
        block_size=block_size,
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        rope=f"theta={config.rope_theta!r} scaling={rope} window={config.sliding_window}",
    )

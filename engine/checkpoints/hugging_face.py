"""Reading a Hugging Face model directory. Owns what `config.json` and safetensors headers mean; torch-free.

A safetensors file is an 8-byte little-endian header length, a JSON header that maps names to dtype,
shape and byte range, then the data. Every range is checked before a byte of it is touched.
"""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from protocol.errors import ConfigError
from protocol.model_config import ModelConfig, RopeScaling

if TYPE_CHECKING:
    from collections.abc import Iterator

_FAMILIES: dict[str, Literal["llama", "qwen2", "qwen3"]] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_ELEMENT_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class RawTensor:
    """Bytes of one checkpoint tensor, row-major; `dtype` is F32, F16 or BF16."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; ConfigError when it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} does not hold a JSON object")
    return value


def read_config(directory: Path) -> ModelConfig:
    """The model that `directory`/config.json (and generation_config.json) describes."""
    generation = directory / "generation_config.json"
    return parse_config(
        read_json(directory / "config.json"), read_json(generation) if generation.exists() else {}
    )


def parse_config(raw: dict[str, Any], generation: dict[str, Any]) -> ModelConfig:
    """ModelConfig of a `config.json`; ConfigError names the field that is not supported."""
    family = _family(raw)
    _check_supported(raw)
    hidden_size, num_heads = _size(raw, "hidden_size"), _size(raw, "num_attention_heads")
    num_kv_heads = int(raw.get("num_key_value_heads") or num_heads)
    head_dim = int(raw.get("head_dim") or hidden_size // num_heads)
    if num_heads % num_kv_heads or head_dim % 2:
        raise ConfigError(
            f"num_attention_heads {num_heads} must be a multiple of num_key_value_heads "
            f"{num_kv_heads}, and head_dim {head_dim} even"
        )
    theta, scaling = _rope(raw)
    return ModelConfig(
        family=family,
        vocab_size=_size(raw, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_size(raw, "intermediate_size"),
        num_layers=_size(raw, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_scaling=scaling,
        max_position_embeddings=_size(raw, "max_position_embeddings"),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        attention_bias=bool(raw.get("attention_bias", family == "qwen2")),
        mlp_bias=bool(raw.get("mlp_bias", False)),
        eos_token_ids=_token_ids(generation.get("eos_token_id", raw.get("eos_token_id"))),
        bos_token_id=next(iter(_token_ids(raw.get("bos_token_id"))), None),
        sliding_window=_sliding_window(raw, family),
    )


def _family(raw: dict[str, Any]) -> Literal["llama", "qwen2", "qwen3"]:
    architectures = raw.get("architectures") or ["(none)"]
    family = _FAMILIES.get(architectures[0])
    if family is None:
        raise ConfigError(
            f"architectures names {architectures[0]}, which is not supported; "
            f"supported: {', '.join(_FAMILIES)}"
        )
    return family


def _check_supported(raw: dict[str, Any]) -> None:
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise ConfigError(f"hidden_act {activation!r} is not supported; supported: silu")
    method = (raw.get("quantization_config") or {}).get("quant_method")
    if method is not None:
        raise ConfigError(
            f"quantization_config {method!r} is not supported; "
            "use unquantized safetensors or a GGUF file"
        )


def _size(raw: dict[str, Any], field: str) -> int:
    value = raw.get(field)
    if not isinstance(value, int) or value <= 0:
        raise ConfigError(f"config.json: {field} must be a positive integer, not {value!r}")
    return value


def _token_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)


def _rope(raw: dict[str, Any]) -> tuple[float, RopeScaling]:
    """(theta, scaling) from `rope_parameters` (newer files) or `rope_theta` and `rope_scaling`."""
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    if float(parameters.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))) != 1.0:
        raise ConfigError("partial_rotary_factor is not supported; supported: 1.0")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return theta, RopeScaling()
    if kind == "linear":
        return theta, RopeScaling(kind="linear", factor=float(parameters["factor"]))
    if kind == "llama3":
        return theta, RopeScaling(
            kind="llama3",
            factor=float(parameters["factor"]),
            low_freq_factor=float(parameters["low_freq_factor"]),
            high_freq_factor=float(parameters["high_freq_factor"]),
            original_max_position=int(parameters["original_max_position_embeddings"]),
        )
    raise ConfigError(
        f"rope_scaling type {kind!r} is not supported; supported: default, linear, llama3"
    )


def _sliding_window(raw: dict[str, Any], family: str) -> int | None:
    window = raw.get("sliding_window")
    uses = raw.get("use_sliding_window", family == "llama")
    if not window or not uses:
        return None
    if family != "llama":
        raise ConfigError(
            "use_sliding_window true is not supported for this architecture (windows on some "
            "layers only); supported: false"
        )
    return int(window)


def _weight_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        for name in names:
            if Path(name).name != name:
                raise ConfigError(f"{index} names a file outside its directory: {name!r}")
        return [directory / name for name in names]
    single = directory / "model.safetensors"
    if not single.exists():
        raise ConfigError(f"{directory} has no model.safetensors and no index; convert it first")
    return [single]


def read_tensors(directory: Path) -> Iterator[tuple[str, RawTensor]]:
    """Every tensor of the checkpoint. Views stay valid while they are referenced."""
    for path in _weight_files(directory):
        yield from read_safetensors(path)


def read_safetensors(path: Path) -> Iterator[tuple[str, RawTensor]]:
    """Name and bytes of every tensor in one file; ConfigError when an offset lies outside it."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot map {path}: {error}") from error
    view = memoryview(mapped)
    size = int.from_bytes(view[:8], "little")
    if len(view) < 8 or size > min(_MAX_HEADER_BYTES, len(view) - 8):
        raise ConfigError(f"{path} is not a safetensors file: header of {size} bytes")
    try:
        header = json.loads(bytes(view[8 : 8 + size]))
    except ValueError as error:
        raise ConfigError(f"{path} is not a safetensors file: {error}") from error
    data = view[8 + size :]
    for name, entry in header.items():
        if name != "__metadata__":
            yield name, _tensor(path, name, entry, data)


def _tensor(path: Path, name: str, entry: dict[str, Any], data: memoryview) -> RawTensor:
    dtype, shape = str(entry.get("dtype")), tuple(entry.get("shape", ()))
    if dtype not in _ELEMENT_BYTES:
        raise ConfigError(
            f"{path}: {name} has dtype {dtype}; supported: {', '.join(_ELEMENT_BYTES)}"
        )
    start, end = entry.get("data_offsets", (0, -1))
    if (
        not 0 <= start <= end <= len(data)
        or end - start != math.prod(shape) * _ELEMENT_BYTES[dtype]
    ):
        raise ConfigError(f"{path}: {name} has offsets [{start}, {end}) that do not fit {shape}")
    return RawTensor(dtype, shape, data[start:end])

"""Reading a GGUF file. Owns its metadata keys, its tensor names and llama's row order; torch-free.

GGUF stores the q and k rows of the `llama` architecture interleaved (rotary pairs side by side);
Baton, like Hugging Face, keeps the two halves apart, so those rows are put back on reading.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import gguf
import numpy as np
from gguf.quants import dequantize

from protocol.errors import ConfigError
from protocol.model_config import ModelConfig, RopeScaling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

_ARCHITECTURES: dict[str, Literal["llama", "qwen2", "qwen3"]] = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"
_READ_ERRORS = (OSError, ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError)


class GgufFile:
    """One open GGUF file whose tensors all lie inside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = gguf.GGUFReader(path)
            self._fields = self._reader.fields
            self.architecture = str(self.get("general.architecture", "(none)"))
        except _READ_ERRORS as error:
            raise ConfigError(f"{path} is not a readable GGUF file: {error}") from error
        if self.architecture not in _ARCHITECTURES:
            raise ConfigError(
                f"{path}: general.architecture {self.architecture!r} is not supported; "
                f"supported: {', '.join(_ARCHITECTURES)}"
            )
        size_bytes = path.stat().st_size
        for tensor in self._reader.tensors:
            check_bounds(tensor.name, int(tensor.data_offset), int(tensor.n_bytes), size_bytes)
        self._by_name = {tensor.name: tensor for tensor in self._reader.tensors}

    def get(self, key: str, default: Any = None) -> Any:
        """Value of a metadata key, or `default` when the file has none."""
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def _hyper(self, key: str, default: Any = None) -> Any:
        value = self.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise ConfigError(f"{self.path} lacks the metadata key {self.architecture}.{key}")
        return value

    def config(self) -> ModelConfig:
        """The model this file describes."""
        hidden_size, num_heads = (
            int(self._hyper("embedding_length")),
            self._hyper("attention.head_count"),
        )
        if not isinstance(num_heads, int):
            raise ConfigError(f"{self.path}: per-layer head counts are not supported")
        head_dim = int(self._hyper("attention.key_length", hidden_size // num_heads))
        if int(self._hyper("rope.dimension_count", head_dim)) != head_dim:
            raise ConfigError(f"{self.path}: partial rotary embeddings are not supported")
        family = _ARCHITECTURES[self.architecture]
        return ModelConfig(
            family=family,
            vocab_size=int(self._by_name["token_embd.weight"].shape[1]),
            hidden_size=hidden_size,
            intermediate_size=int(self._hyper("feed_forward_length")),
            num_layers=int(self._hyper("block_count")),
            num_heads=num_heads,
            num_kv_heads=int(self._hyper("attention.head_count_kv", num_heads)),
            head_dim=head_dim,
            # stored as float32; the shortest decimal is the one that was meant
            rms_norm_eps=float(str(np.float32(self._hyper("attention.layer_norm_rms_epsilon")))),
            rope_theta=float(self._hyper("rope.freq_base", 10000.0)),
            rope_scaling=self._rope_scaling(),
            max_position_embeddings=int(self._hyper("context_length")),
            tie_word_embeddings="output.weight" not in self._by_name,
            attention_bias="blk.0.attn_q.bias" in self._by_name,
            eos_token_ids=self._eos_token_ids(),
            bos_token_id=self.get("tokenizer.ggml.bos_token_id"),
            sliding_window=self.get(f"{self.architecture}.attention.sliding_window"),
        )

    def _eos_token_ids(self) -> tuple[int, ...]:
        keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
        found = (self.get(key) for key in keys)
        return tuple(dict.fromkeys(int(value) for value in found if value is not None))

    def _rope_scaling(self) -> RopeScaling:
        if _ROPE_FACTORS in self._by_name:
            factors = dequantize(
                self._by_name[_ROPE_FACTORS].data, self._by_name[_ROPE_FACTORS].tensor_type
            )
            # llama.cpp stores Llama 3's scaling as divisors; the largest is the factor itself
            return RopeScaling(kind="llama3", factor=float(np.max(factors)))
        kind = self.get(f"{self.architecture}.rope.scaling.type", "none")
        if kind == "none":
            return RopeScaling()
        if kind == "linear":
            return RopeScaling(kind="linear", factor=float(self._hyper("rope.scaling.factor")))
        raise ConfigError(
            f"{self.path}: rope.scaling.type {kind!r} is not supported; supported: linear"
        )

    def tensors(self) -> Iterator[tuple[str, Callable[[], npt.NDArray[np.float32]]]]:
        """Hugging Face name of every weight, and a call that reads it as float32."""
        num_heads = int(self._hyper("attention.head_count"))
        rows = {
            "attn_q": num_heads,
            "attn_k": int(self._hyper("attention.head_count_kv", num_heads)),
        }
        for tensor in self._reader.tensors:
            if tensor.name == _ROPE_FACTORS:
                continue
            part = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
            num_rows = rows.get(part, 0) if self.architecture == "llama" else 0
            yield hugging_face_name(tensor.name), partial(_read_values, tensor, num_rows)


def _read_values(tensor: Any, num_rotary_heads: int) -> npt.NDArray[np.float32]:
    values = _dequantize(tensor)
    return unpermute(values, num_rotary_heads) if num_rotary_heads else values


def check_bounds(name: str, offset: int, size: int, file_size: int) -> None:
    """ConfigError unless bytes [offset, offset + size) lie inside a file of `file_size` bytes."""
    if offset < 0 or size < 0 or offset + size > file_size:
        raise ConfigError(
            f"tensor {name} claims bytes [{offset}, {offset + size}) of a file of {file_size} bytes; "
            "the file is damaged or incomplete, fetch it again"
        )


def hugging_face_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` for `blk.3.ffn_up.weight`; ConfigError when unknown."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    pieces = name.split(".")
    if len(pieces) != 4 or pieces[0] != "blk" or pieces[2] not in _LAYER_NAMES:
        raise ConfigError(f"GGUF tensor {name} is not supported")
    return f"model.layers.{pieces[1]}.{_LAYER_NAMES[pieces[2]]}.{pieces[3]}"


def unpermute(values: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    """Rows [heads, dim/2, 2] back to [heads, 2, dim/2]: undo llama.cpp's order for rotary pairs."""
    half = values.shape[0] // num_heads // 2
    split = values.reshape(num_heads, half, 2, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)


def _dequantize(tensor: Any) -> npt.NDArray[np.float32]:
    shape = tuple(int(size) for size in reversed(tensor.shape))
    try:
        values = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ConfigError(
            f"GGUF quantization {tensor.tensor_type.name} of {tensor.name} is not supported"
        ) from error
    if values.size != math.prod(shape):
        raise ConfigError(f"GGUF tensor {tensor.name} does not have the shape {shape}")
    return np.asarray(values, dtype=np.float32).reshape(shape)

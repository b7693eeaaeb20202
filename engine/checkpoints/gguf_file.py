"""What a GGUF model means. Owns its keys, its tensor names and llama's row order; torch-free.

A key of the architecture that is not known here refuses the model, and so does a tensor that has no use. GGUF stores
the q and k rows of the `llama` architecture interleaved (rotary pairs side by side); Baton, like Hugging Face, keeps
the two halves apart, so those rows are put back on reading. Large models come as several files, all but the first
of which have tensors only.
"""

from __future__ import annotations

import re
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from engine.checkpoints.fields import Fields, shown
from engine.checkpoints.gguf_header import GgufHeader, GgufTensor, is_dequantized, read_values
from engine.checkpoints.gguf_parts import MAX_PARTS, part_paths
from engine.checkpoints.hugging_face_config import MAX_HEADS, MAX_LAYERS
from engine.checkpoints.rope_fields import DEFAULT_THETA, yarn_temperature
from engine.checkpoints.stored_tensor import StoredTensor, Values
from protocol.errors import ConfigError
from protocol.model_config import ModelConfig, RopeScaling

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

_ARCHITECTURES: dict[str, Literal["llama", "qwen2", "qwen3"]] = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
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
_NAME = re.compile(r"(?:blk\.(0|[1-9][0-9]{0,5})\.)?([a-z_]+)\.(weight|bias)")
_ROPE_FACTORS = "rope_freqs.weight"
_USED = frozenset(
    {
        *("context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size"),
        *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
        *("attention.value_length", "attention.layer_norm_rms_epsilon", "rope.dimension_count"),
        *("attention.sliding_window", "attention.causal", "rope.freq_base", "rope.scaling.type"),
        *("rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned"),
        *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scale_linear"),
    }
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "use_parallel_residual": (False,),
    "tensor_data_layout": ("Meta AI original pth",),
}
"""Keys whose other values would change the answers."""


class GgufFile:
    """One GGUF model, in one file or several."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header = GgufHeader(path)
        self._headers = _all_parts(header)
        self._metadata = Fields(self._headers[0].fields, str(self._headers[0].path))
        self.architecture = self._metadata.text("general.architecture", "(none)")
        if self.architecture not in _ARCHITECTURES:
            self._metadata.refuse(
                "general.architecture",
                f"{shown(self.architecture)} is not supported; supported: {', '.join(_ARCHITECTURES)}",
            )
        self._by_name: dict[str, GgufTensor] = {}
        for part in self._headers:
            for name, tensor in part.tensors.items():
                if name in self._by_name:
                    raise ConfigError(f"{part.path}: tensor {shown(name)} is in another part too")
                self._by_name[name] = tensor

    @property
    def fields(self) -> Fields:
        """All metadata."""
        return self._metadata

    def get(self, key: str, default: Any = None) -> Any:
        """Value of a metadata key, or `default` when the file has none."""
        return self._metadata.values.get(key, default)

    @cached_property
    def _hyper(self) -> Fields:
        """The keys of the architecture, without its name; ConfigError for one that is not known."""
        prefix = f"{self.architecture}."
        own = {
            key.removeprefix(prefix): value
            for key, value in self._metadata.values.items()
            if key.startswith(prefix)
        }
        for key, value in own.items():
            if key not in _USED and value not in _NEUTRAL.get(key, ()):
                self._metadata.refuse(prefix + key, f"of {shown(value)} is not supported")
        for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
            value = own.get(key)
            if isinstance(value, list) and value and all(item == value[0] for item in value):
                own[key] = value[0]  # one number a layer, all the same
        return Fields(own, f"{self._metadata.where}: {self.architecture}")

    def config(self) -> ModelConfig:
        """The model this file describes; its ends of sequence are in the vocabulary."""
        hyper, names = self._hyper, self._by_name
        hidden_size = hyper.integer("embedding_length")
        num_heads, num_kv_heads = self._head_counts()
        embedding = names.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise ConfigError(f"{self.path} lacks the tensor token_embd.weight, or it is no matrix")
        return ModelConfig(
            family=_ARCHITECTURES[self.architecture],
            vocab_size=embedding.shape[0],
            hidden_size=hidden_size,
            intermediate_size=hyper.integer("feed_forward_length"),
            num_layers=hyper.integer("block_count", most=MAX_LAYERS),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=self._head_dim(hidden_size, num_heads),
            # stored as float32; the shortest decimal is the one that was meant
            rms_norm_eps=float(str(np.float32(hyper.number("attention.layer_norm_rms_epsilon")))),
            rope_theta=self._theta(),
            rope_scaling=self._rope_scaling(self._head_dim(hidden_size, num_heads)),
            max_position_embeddings=hyper.integer("context_length"),
            tie_word_embeddings="output.weight" not in names,
            attention_bias=self._has_bias("attn_q", "attn_k", "attn_v"),
            output_bias=self._has_bias("attn_output"),
            mlp_bias=self._has_bias("ffn_gate", "ffn_up", "ffn_down"),
            sliding_window=self._window(),
        )

    def _head_counts(self) -> tuple[int, int]:
        hyper = self._hyper
        num_heads = hyper.integer("attention.head_count", most=MAX_HEADS)
        num_kv_heads = hyper.integer("attention.head_count_kv", num_heads, most=MAX_HEADS)
        if num_heads % num_kv_heads:
            hyper.refuse("attention.head_count_kv", f"{num_kv_heads} must divide {num_heads} heads")
        return num_heads, num_kv_heads

    def _head_dim(self, hidden_size: int, num_heads: int) -> int:
        hyper = self._hyper
        head_dim = hyper.integer("attention.key_length", hidden_size // num_heads, most=MAX_HEADS)
        if head_dim % 2:
            hyper.refuse("attention.key_length", f"must be even, not {head_dim}")
        for name in ("attention.value_length", "rope.dimension_count"):
            if hyper.integer(name, head_dim) != head_dim:
                hyper.refuse(name, f"is supported as the length of a head, {head_dim}, only")
        return head_dim

    def _theta(self) -> float:
        """Stored as float32, like epsilon."""
        return float(
            str(np.float32(self._hyper.number("rope.freq_base", DEFAULT_THETA, above=True)))
        )

    def _window(self) -> int | None:
        """llama.cpp computes these architectures without a window, whatever the file says; neither is right to guess."""
        window = self._hyper.integer("attention.sliding_window", 0, least=0)
        if window and window < self._hyper.integer("context_length"):
            self._hyper.refuse("attention.sliding_window", "is not supported for this architecture")
        if not self._hyper.flag("attention.causal", default=True):
            self._hyper.refuse("attention.causal", "is supported as true only")
        return None

    def _has_bias(self, *parts: str) -> bool:
        return any(f"blk.0.{part}.bias" in self._by_name for part in parts)

    def _rope_scaling(self, head_dim: int) -> RopeScaling:
        hyper = self._hyper
        kind = hyper.text("rope.scaling.type", "none")
        scale = hyper.number("rope.scale_linear", 1.0, above=True)
        factor = hyper.number("rope.scaling.factor", scale, above=True)
        if not hyper.has("rope.scaling.type") and factor != 1.0:
            kind = "linear"  # older files have the factor alone
        if _ROPE_FACTORS in self._by_name:
            if kind != "none":
                hyper.refuse(
                    "rope.scaling.type", f"{shown(kind)} beside {_ROPE_FACTORS} is not supported"
                )
            return RopeScaling(kind="divisors", divisors=self._divisors(head_dim))
        if kind == "none":
            return RopeScaling()
        if kind == "linear":
            return RopeScaling(kind="linear", factor=factor)
        if kind != "yarn":
            hyper.refuse(
                "rope.scaling.type",
                f"{shown(kind)} is not supported; supported: none, linear, yarn",
            )
        return RopeScaling(
            kind="yarn",
            factor=factor,
            original_max_position=hyper.integer(
                "rope.scaling.original_context_length", hyper.integer("context_length")
            ),
            beta_fast=hyper.number("rope.scaling.yarn_beta_fast", 32.0, above=True),
            beta_slow=hyper.number("rope.scaling.yarn_beta_slow", 1.0, above=True),
            attention_factor=yarn_temperature(factor),
        )

    def _divisors(self, head_dim: int) -> tuple[float, ...]:
        tensor = self._by_name[_ROPE_FACTORS]
        if tensor.shape != (head_dim // 2,) or not is_dequantized(tensor.kind):
            raise ConfigError(
                f"{self.path}: {_ROPE_FACTORS} is {tensor.kind.name} of shape {tensor.shape}, "
                f"expected numbers of shape {(head_dim // 2,)}"
            )
        values = read_values(tensor)
        if not (np.isfinite(values) & (values > 0)).all():
            raise ConfigError(f"{self.path}: {_ROPE_FACTORS} must be positive and finite")
        return tuple(values.tolist())

    def tensors(self) -> dict[str, StoredTensor]:
        """Every weight by its Hugging Face name; ConfigError names a tensor that no such model has."""
        num_heads, num_kv_heads = self._head_counts()
        rows = {"q_proj": num_heads, "k_proj": num_kv_heads} if self.architecture == "llama" else {}
        found = {}
        for name, tensor in self._by_name.items():
            if name == _ROPE_FACTORS:
                continue
            theirs = self._their_name(name)
            num_rows = rows.get(theirs.split(".")[-2], 0)
            if num_rows and tensor.shape[0] % (2 * num_rows):
                raise ConfigError(
                    f"{self.path}: {name} has {tensor.shape[0]} rows for {num_rows} heads"
                )
            found[theirs] = StoredTensor(
                name,
                tensor.kind.name,
                tensor.shape,
                partial(_read, tensor, num_rows),
                is_dequantized(tensor.kind),
            )
        return found

    def _their_name(self, name: str) -> str:
        try:
            return hugging_face_name(name)
        except KeyError:
            raise ConfigError(
                f"{self.path}: the tensor {shown(name)} has no use in a {self.architecture} model"
            ) from None


def _read(tensor: GgufTensor, num_rotary_heads: int) -> Values:
    values = read_values(tensor)
    return "F32", unpermute(values, num_rotary_heads) if num_rotary_heads else values


def hugging_face_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` for `blk.3.ffn_up.weight`; KeyError when unknown."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise KeyError(name)
    layer, part, kind = match.groups()
    if layer is None:
        return f"{_TOP_NAMES[part]}.{kind}"
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{kind}"


def gguf_name(name: str) -> str:
    """The other way round, for people: `blk.3.ffn_up.weight` for `model.layers.3.mlp.up_proj.weight`."""
    stem, _, kind = name.rpartition(".")
    top = {theirs: ours for ours, theirs in _TOP_NAMES.items()}
    if stem in top:
        return f"{top[stem]}.{kind}"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{ {theirs: ours for ours, theirs in _LAYER_NAMES.items()}[part] }.{kind}"


def unpermute(values: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    """Rows [heads, dim/2, 2] back to [heads, 2, dim/2]: undo llama.cpp's order for rotary pairs."""
    half = values.shape[0] // num_heads // 2
    split = values.reshape(num_heads, half, 2, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)


def _all_parts(header: GgufHeader) -> list[GgufHeader]:
    """The headers of every part, the first first; ConfigError when one is missing or is another's."""
    fields = Fields(header.fields, str(header.path))
    count = fields.integer("split.count", 1, least=0, most=MAX_PARTS)
    if count <= 1:
        return [header]
    paths = part_paths(header.path)
    if len(paths) != count:
        raise ConfigError(
            f"{header.path} is one of {count} parts; name them …-00001-of-{count:05}.gguf and so on"
        )
    headers = [header if path == header.path else GgufHeader(path) for path in paths]
    for index, part in enumerate(headers):
        own = Fields(part.fields, str(part.path))
        if own.integer("split.no", least=0) != index or own.integer("split.count") != count:
            own.refuse("split.no", f"is not that of part {index + 1} of {count}")
    total = Fields(headers[0].fields, str(paths[0])).integer("split.tensors.count", -1, least=-1)
    held = sum(len(part.tensors) for part in headers)
    if total not in (-1, held):
        raise ConfigError(f"{paths[0]}: `split.tensors.count` is {total}, the parts hold {held}")
    return headers

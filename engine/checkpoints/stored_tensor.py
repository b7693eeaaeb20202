"""The tensors of a checkpoint before conversion. Owns the rule that none is left over: each is used, known to be
derived from the configuration, or refuses the model by its name. Torch-free.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.checkpoints.weight_shapes import source_shapes
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from protocol.model_config import ModelConfig

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_DERIVED = re.compile(
    r"(.*\.)?(rotary_emb\.(inv_freq|cos_cached|sin_cached)|(attn|attention)\.(bias|masked_bias)|masked_bias"
    r"|position_ids|causal_mask)"
)
_NEVER_WEIGHTS = ("I64", "BOOL")
"""Counters and masks. Other integers hold quantized weights, so they do not pass."""
_CHUNK = 1 << 26
Values = tuple[str, "memoryview | npt.NDArray[np.float32]"]
"""What a tensor holds: F64, F32, F16 or BF16, and its bytes or, of a GGUF file, its float32 values."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as the file has it. `label` names it to a person; `read` may raise ConfigError."""

    label: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Values]
    is_readable: bool = True


def check_tensors(
    config: ModelConfig,
    tensors: Mapping[str, StoredTensor],
    where: str,
    label: Callable[[str], str] = str,
) -> None:
    """ConfigError names the tensor that is missing, of another shape or type, or left over."""
    used = set()
    for name, shape in source_shapes(config):
        stored = tensors.get(name)
        if stored is None:
            raise ConfigError(f"{where} lacks the tensor {label(name)}")
        if stored.shape != shape:
            raise ConfigError(f"{where}: {stored.label} has shape {stored.shape}, expected {shape}")
        if not stored.is_readable:
            raise ConfigError(
                f"{where}: {stored.label} is stored as {stored.dtype}, which is not supported"
            )
        used.add(name)
    for name, stored in tensors.items():
        if name not in used and stored.dtype not in _NEVER_WEIGHTS and not _DERIVED.fullmatch(name):
            raise ConfigError(
                f"{where}: the tensor {stored.label} has no use in this model as its configuration "
                "describes it, so answers would be wrong"
            )


def settle_head(config: ModelConfig, tensors: dict[str, StoredTensor]) -> bool:
    """Whether embedding and head are one tensor, as transformers decides it: the configuration says so, unless the
    checkpoint has both and they differ. What only one of them has is given to the embedding, a copy is dropped."""
    if not config.tie_word_embeddings or HEAD not in tensors:
        return config.tie_word_embeddings
    if EMBED in tensors and not _equal(tensors[EMBED], tensors[HEAD]):
        return False
    tensors.setdefault(EMBED, tensors[HEAD])
    del tensors[HEAD]
    return True


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    first, second = _bytes_of(one), _bytes_of(other)
    return all(
        np.array_equal(first[start : start + _CHUNK], second[start : start + _CHUNK])
        for start in range(0, first.size, _CHUNK)
    )


def _bytes_of(stored: StoredTensor) -> npt.NDArray[np.uint8]:
    values = stored.read()[1]
    if isinstance(values, memoryview):
        return np.frombuffer(values, np.uint8)
    return values.reshape(-1).view(np.uint8)

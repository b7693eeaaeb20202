"""Rotary position embedding tables. Owns the frequencies and their scaling; applying them is the backend's.

Su et al., RoFormer (arXiv 2104.09864), in the half-split form of Hugging Face; the llama3 scaling is
that of Llama 3.1's own release: long waves are stretched by `factor`, short ones kept, a ramp between.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from protocol.model_config import ModelConfig, RopeScaling


def inverse_frequencies(config: ModelConfig) -> torch.Tensor:
    """[head_dim / 2] float32 radians per position."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "llama3":
        return _llama3(frequencies, scaling)
    return frequencies


def _llama3(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    ramp = (scaling.original_max_position / wavelengths - low) / (high - low)
    ramp = ramp.clamp(0.0, 1.0)
    return (1 - ramp) * frequencies / scaling.factor + ramp * frequencies


def rope_table(config: ModelConfig, num_positions: int) -> torch.Tensor:
    """[num_positions, head_dim] float32: cosines in the first half of a row, sines in the second."""
    angles = torch.outer(torch.arange(num_positions).float(), inverse_frequencies(config))
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def rotate(x: torch.Tensor, table_rows: torch.Tensor) -> torch.Tensor:
    """Rotate [T, heads, head_dim] by [T, head_dim] rows of the table; float32 inside, x's dtype out."""
    cosines, sines = table_rows.unsqueeze(1).chunk(2, dim=-1)
    first, second = x.float().chunk(2, dim=-1)
    rotated = (first * cosines - second * sines, second * cosines + first * sines)
    return torch.cat(rotated, dim=-1).to(x.dtype)

"""Rotary position embedding tables. Owns the frequencies and their scaling; applying them is the backend's.

Su et al., RoFormer (arXiv 2104.09864), in the half-split form of Hugging Face; the llama3 scaling is
that of Llama 3.1's own release: long waves are stretched by `factor`, short ones kept, a ramp between.
YaRN (arXiv 2309.00071) ramps over the number of the frequency instead, and multiplies cosines and sines.
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
    if scaling.kind == "yarn":
        return _yarn(config.rope_theta**exponents, config)
    if scaling.kind == "divisors":
        return frequencies / torch.tensor(scaling.divisors, dtype=torch.float32)
    return frequencies


def _llama3(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    ramp = (scaling.original_max_position / wavelengths - low) / (high - low)
    ramp = ramp.clamp(0.0, 1.0)
    return (1 - ramp) * frequencies / scaling.factor + ramp * frequencies


def _yarn(periods: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Frequencies that turn more than `beta_fast` times within the original context stay, those that turn less
    than `beta_slow` times are stretched by `factor`, with a ramp between."""
    scaling, dim = config.rope_scaling, config.head_dim

    def number_of(turns: float) -> float:
        ratio = scaling.original_max_position / (turns * 2 * math.pi)
        return dim * math.log(ratio) / (2 * math.log(config.rope_theta))

    low, high = number_of(scaling.beta_fast), number_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001
    stretched = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    kept = 1 - stretched
    return 1.0 / (scaling.factor * periods) * (1 - kept) + 1.0 / periods * kept


def rope_table(config: ModelConfig, num_positions: int) -> torch.Tensor:
    """[num_positions, head_dim] float32: cosines in the first half of a row, sines in the second."""
    angles = torch.outer(torch.arange(num_positions).float(), inverse_frequencies(config))
    return torch.cat((angles.cos(), angles.sin()), dim=1) * config.rope_scaling.attention_factor


def rotate(x: torch.Tensor, table_rows: torch.Tensor) -> torch.Tensor:
    """Rotate [T, heads, head_dim] by [T, head_dim] rows of the table; float32 inside, x's dtype out."""
    cosines, sines = table_rows.unsqueeze(1).chunk(2, dim=-1)
    first, second = x.float().chunk(2, dim=-1)
    rotated = (first * cosines - second * sines, second * cosines + first * sines)
    return torch.cat(rotated, dim=-1).to(x.dtype)

"""Groups of weights that share a scale, and what they take. Owns the numbers; torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

GROUP = 64
"""Weights along the inputs. As kernels/quantized.h has it."""
SCALE_BYTES = 4
MATRIX_DIMENSIONS = 2


def quantized_bytes(shape: Sequence[int]) -> int:
    """Bytes of a tensor [outputs, inputs] with a byte a weight and a scale a group; of a vector 0: it is kept as it is, and small."""
    if len(shape) != MATRIX_DIMENSIONS:
        return 0
    outputs, inputs = shape
    return outputs * -(-inputs // GROUP) * (GROUP + SCALE_BYTES)

"""How a model's matrices are kept. Owns the names, as --quantization has them."""

from __future__ import annotations

from enum import StrEnum


class Quantization(StrEnum):
    """`NONE` is as they are, in the model's dtype; `INT8` is bytes with scales, and multiplied as such."""

    NONE = "none"
    INT8 = "int8"

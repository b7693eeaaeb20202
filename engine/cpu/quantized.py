"""Weights as bytes. Owns the scheme: which matrices, in which groups, rounded how; how panels lie is engine.cpu.panels's.

A weight is an integer from -127 to 127 times a scale that it shares with the GROUP of its neighbours along the inputs: the
largest of them is 127. So is a row that is multiplied, when it comes (kernels/quantized.h). Embedded tokens, norms and
biases stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.cpu.quantized_sizes import GROUP

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST, OFFSET = 127, 128
"""Bytes are kept without a sign: what multiplies them wants it so."""


def quantized_words(weight: torch.Tensor) -> torch.Tensor:
    """[outputs, inputs] as int32 [outputs, words]: for each group its bytes, four a word, then the bits of its scale. The
    last group is filled up with zeros; a group with a number that is none has a scale that is none."""
    inputs = weight.shape[1]
    padded = torch.nn.functional.pad(weight, (0, -inputs % GROUP))
    return torch.cat(
        [
            part
            for start in range(0, inputs, GROUP)
            for part in _group(padded[:, start : start + GROUP])
        ],
        1,
    )


def _group(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    wide = weight.float()
    scale = wide.abs().amax(1, keepdim=True) / LARGEST
    integers = (wide / scale).round().nan_to_num(0.0, 0.0, 0.0).clamp(-LARGEST, LARGEST)
    yield (integers + OFFSET).to(torch.uint8).view(torch.int32)
    yield torch.where(scale.isfinite(), scale, torch.nan).view(torch.int32)

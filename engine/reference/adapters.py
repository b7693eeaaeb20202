"""What adapters add to a product, in plain torch. Owns their matrices as tensors, kept with the adapter's content."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    from engine.adapters.content import Content
    from engine.adapters.modules import MatrixName
    from engine.model.ragged_batch import AdapterRows

    Parts = dict[tuple[int, MatrixName], list[tuple[slice, torch.Tensor, torch.Tensor]]]

FORM = "torch"


def add_adapters(
    result: torch.Tensor,
    x: torch.Tensor,
    adapters: tuple[AdapterRows, ...],
    place: tuple[int, MatrixName],
    is_sampled: bool,  # noqa: FBT001 - which of the two kinds of rows these are
) -> None:
    """Add b (a x) to the rows of `result` that have an adapter; float32 inside. `place`: of which layer and matrix."""
    for one in adapters:
        rows = (
            slice(one.sampled_first, one.sampled_end) if is_sampled else slice(one.first, one.end)
        )
        for outputs, a, b in _parts(cast("Content", one.adapter), x.device).get(place, ()):
            added = x[rows].float() @ a.T @ b.T
            result[rows, outputs] = (result[rows, outputs].float() + added).to(result.dtype)


def _parts(content: Content, device: torch.device) -> Parts:
    """Made once; [rank, inputs] and [outputs, rank] float32 of every part."""
    if FORM not in content.forms:
        parts: Parts = {}
        for part in content.header.parts:
            a = torch.from_numpy(content.matrix(part.a, part.rank, part.inputs).copy())
            b = torch.from_numpy(content.matrix(part.b, part.outputs, part.rank).copy())
            outputs = slice(part.first, part.first + part.outputs)
            parts.setdefault((part.layer, part.matrix), []).append(
                (outputs, a.to(device), b.to(device))
            )
        content.forms[FORM] = parts
    return cast("Parts", content.forms[FORM])

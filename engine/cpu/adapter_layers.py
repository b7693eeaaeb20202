"""Adapters as the C side reads them: pointers into their mapped content. Owns these and the rows of a step."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, cast

from engine.adapters.content import COLUMNS
from engine.cpu.kernel_library import AdapterLayer, AdapterPart, Segment

if TYPE_CHECKING:
    from engine.adapters.content import Content
    from engine.model.ragged_batch import RaggedBatch

FORM = "kernels"
assert COLUMNS == 16, "as CHAIN_COLUMNS of kernels/decoder.h"


def segments_of(batch: RaggedBatch, num_layers: int) -> Any:
    """The batch's adapters as an array for a step; it keeps what it points to."""
    rows = [
        Segment(
            layers=_layers(cast("Content", one.adapter), num_layers),
            first=one.first,
            end=one.end,
            sampled_first=one.sampled_first,
            sampled_end=one.sampled_end,
        )
        for one in batch.adapters
    ]
    return (Segment * len(rows))(*rows)


def _layers(content: Content, num_layers: int) -> Any:
    """Made once for an adapter, and kept with it."""
    if FORM not in content.forms:
        layers = (AdapterLayer * num_layers)()
        for part in content.header.parts:
            matrix = getattr(layers[part.layer], part.matrix)
            matrix.parts[matrix.count] = AdapterPart(
                a=content.array(part.a, part.rank, part.inputs).ctypes.data,
                b=content.array(part.b, part.outputs, part.rank).ctypes.data,
                rank=part.rank,
                inputs=part.inputs,
                first=part.first,
                outputs=part.outputs,
            )
            matrix.count += 1
        content.forms[FORM] = layers
    return ctypes.cast(cast("Any", content.forms[FORM]), ctypes.POINTER(AdapterLayer))

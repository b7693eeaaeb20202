"""What one step reads on the device. Owns the packing of host arrays and their one copy.

pinned host memory   [ token ids | slots | sample rows | positions | starts | contexts ]  one copy
                     [ block tables, a row a sequence                                  ]  one copy
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    import numpy.typing as npt

    from engine.model.ragged_batch import Int64Array, RaggedBatch

_ALIGNMENT = 16
"""Bytes: kernels are compiled for aligned arrays."""
_ELEMENT = {torch.int64: 8, torch.int32: 4}


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Arrays of T tokens and S sequences on the device; see engine.model.ragged_batch.RaggedBatch for the fields.

    `slots` [T] int64 is block * block_size + offset, -1 for a padding row; `sample_rows` is None where every row
    is sampled; `max_queries` is the most new tokens of one sequence, on the host.
    """

    token_ids: torch.Tensor
    slots: torch.Tensor
    sample_rows: torch.Tensor | None
    positions: torch.Tensor
    query_starts: torch.Tensor
    contexts: torch.Tensor
    block_tables: torch.Tensor
    max_queries: int


def flat_slots(batch: RaggedBatch, block_size: int) -> Int64Array:
    """[T] flat slot of each new token."""
    owners = np.repeat(np.arange(batch.num_sequences), np.diff(batch.query_starts))
    blocks = batch.block_tables[owners, batch.positions // block_size].astype(np.int64)
    slots: Int64Array = blocks * block_size + batch.positions % block_size
    return slots


class Layout:
    """Where each array lies in a packed buffer of bytes."""

    def __init__(self, num_tokens: int, num_sequences: int, num_samples: int) -> None:
        self._places: dict[str, tuple[int, int, torch.dtype]] = {}
        self.num_bytes = 0
        self._add("token_ids", num_tokens, torch.int64)
        self._add("slots", num_tokens, torch.int64)
        self._add("sample_rows", num_samples, torch.int64)
        self._add("positions", num_tokens, torch.int32)
        self._add("query_starts", num_sequences + 1, torch.int32)
        self._add("contexts", num_sequences, torch.int32)

    def _add(self, name: str, count: int, dtype: torch.dtype) -> None:
        self._places[name] = (self.num_bytes, count, dtype)
        self.num_bytes += -(-count * _ELEMENT[dtype] // _ALIGNMENT) * _ALIGNMENT

    def view(self, packed: torch.Tensor, name: str) -> torch.Tensor:
        """That array inside a buffer of `num_bytes` uint8."""
        start, count, dtype = self._places[name]
        return packed[start : start + count * _ELEMENT[dtype]].view(dtype)


class InputStaging:
    """Pinned memory that every step's inputs go through; each step is synchronized before the next is packed."""

    def __init__(self, device: torch.device, block_size: int) -> None:
        self._device = device
        self._block_size = block_size
        self._packed = self._pinned(1 << 16, torch.uint8)
        self._tables = self._pinned(1 << 14, torch.int32)

    def _pinned(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, pin_memory=self._device.type == "cuda")

    def upload(self, batch: RaggedBatch) -> StepInputs:
        """The batch on the device, in memory of its own."""
        layout = Layout(batch.num_tokens, batch.num_sequences, len(batch.sample_rows))
        packed = self._pack(batch, layout).to(self._device, non_blocking=True)
        tables = self._pack_tables(batch).to(self._device, non_blocking=True)
        return _inputs(layout, packed, tables, int(np.diff(batch.query_starts).max()))

    def upload_into(self, target: DecodeInputs, batch: RaggedBatch) -> None:
        """The batch, one new token a sequence, into the arrays that a CUDA graph reads."""
        layout = target.layout
        padded = self._pack(batch, layout)
        count = batch.num_sequences
        layout.view(padded, "slots")[count:] = -1
        layout.view(padded, "contexts")[count:] = 0
        for name in ("token_ids", "positions"):
            layout.view(padded, name)[count:] = 0
        target.packed.copy_(padded, non_blocking=True)
        tables = self._pack_tables(batch)
        target.tables[:count, : tables.shape[1]].copy_(tables, non_blocking=True)

    def _pack(self, batch: RaggedBatch, layout: Layout) -> torch.Tensor:
        if layout.num_bytes > len(self._packed):
            self._packed = self._pinned(2 * layout.num_bytes, torch.uint8)
        packed = self._packed[: layout.num_bytes]
        arrays: dict[str, npt.NDArray[Any]] = {
            "token_ids": batch.token_ids,
            "slots": flat_slots(batch, self._block_size),
            "sample_rows": batch.sample_rows,
            "positions": batch.positions,
            "query_starts": batch.query_starts,
            "contexts": batch.context_lengths,
        }
        for name, array in arrays.items():
            view = layout.view(packed, name)
            view[: len(array)] = torch.from_numpy(array[: len(view)])
        return packed

    def _pack_tables(self, batch: RaggedBatch) -> torch.Tensor:
        size = batch.block_tables.size
        if size > len(self._tables):
            self._tables = self._pinned(2 * size, torch.int32)
        tables = self._tables[:size].view(batch.block_tables.shape)
        tables.copy_(torch.from_numpy(batch.block_tables))
        return tables


def _inputs(
    layout: Layout, packed: torch.Tensor, tables: torch.Tensor, max_queries: int
) -> StepInputs:
    names = ("token_ids", "slots", "sample_rows", "positions", "query_starts", "contexts")
    arrays = {name: layout.view(packed, name) for name in names}
    return StepInputs(**arrays, block_tables=tables, max_queries=max_queries)


class DecodeInputs:
    """Arrays at fixed addresses for `size` sequences of one new token each, padding included."""

    def __init__(self, size: int, tables: torch.Tensor) -> None:
        """`tables` [at least size, widest] int32 on the device, shared by all sizes."""
        self.layout = Layout(size, size, 0)
        self.packed = torch.zeros(self.layout.num_bytes, dtype=torch.uint8, device=tables.device)
        self.tables = tables[:size]
        names = ("token_ids", "slots", "positions", "query_starts", "contexts")
        arrays = {name: self.layout.view(self.packed, name) for name in names}
        arrays["slots"].fill_(-1)
        self.inputs = StepInputs(
            **arrays, sample_rows=None, block_tables=self.tables, max_queries=1
        )

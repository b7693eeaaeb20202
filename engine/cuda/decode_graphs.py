"""CUDA graphs of decode steps. Owns the sizes that are captured and the arrays that the graphs read and write.

A step of S sequences runs in the smallest graph of at least S rows; the rows beyond are padding. One graph is
a step from embedding to the best token of each row, so that launching it costs the host one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from engine.cuda.backend import CudaBackend, CudaStep
from engine.cuda.few_rows import MAX_ROWS, FewRowsModel
from engine.cuda.step_inputs import DecodeInputs

if TYPE_CHECKING:
    from engine.model.decoder import Model
    from engine.model.ragged_batch import RaggedBatch

_TRIALS = 8
_PARTS = (64, 32, 16, 8, 4, 2)
"""Of the vocabulary, when the best token is looked for."""


def graph_sizes(most: int) -> list[int]:
    """1, 2, 4, every 8 to 64, every 16 to 128, every 32 to 256, every 64 beyond; `most` is the last."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, 256, 32)]
    sizes += range(256, most + 1, 64)
    return [*(size for size in sizes if size < most), most]


@dataclass(frozen=True, slots=True)
class Choices:
    """What a step says of R rows: `logits` [R, vocab] float32, and `greedy` [2, R] int64, the best token of
    each row and whether its logit is a finite number."""

    logits: torch.Tensor
    greedy: torch.Tensor


def choices_of(logits: torch.Tensor) -> Choices:
    """The greedy answer beside the logits; of equal logits the lowest token id is taken."""
    rows, vocab = logits.shape
    parts = next((count for count in _PARTS if vocab % count == 0), 1)
    values, places = logits.view(rows, parts, vocab // parts).max(
        dim=-1
    )  # one row alone keeps one processor busy
    values, part = values.max(dim=-1)
    ids = part * (vocab // parts) + places.gather(-1, part.unsqueeze(-1)).squeeze(-1)
    return Choices(logits, torch.stack((ids, torch.isfinite(values).to(torch.int64))))


class _Graph:
    """One captured size."""

    def __init__(self, size: int, tables: torch.Tensor) -> None:
        self.size = size
        self.arrays = DecodeInputs(size, tables)
        self.graph = torch.cuda.CUDAGraph()
        self.choices: Choices | None = None


class DecodeGraphs:
    """Graphs for up to `max_num_seqs` sequences, captured once; one at a time runs."""

    def __init__(self, model: Model, backend: CudaBackend, max_num_seqs: int, max_context: int):
        block_size = backend.kv.shape[4]
        self._model = model
        self._backend = backend
        self._sizes = graph_sizes(max_num_seqs)
        width = -(-max_context // block_size)
        shape = (self._sizes[-1], -(-width // 16) * 16)
        self._tables = torch.zeros(shape, dtype=torch.int32, device=backend.kv.device)
        self._graphs: dict[int, _Graph] = {}
        self._few_rows = FewRowsModel(model.weights)
        self._pool: Any = None
        self.times_ms: dict[str, float] = {}
        self.few_rows_are_faster = False

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture every size, the largest first, in one pool of memory; for few rows the way that is faster here."""
        few = max(size for size in self._sizes if size <= MAX_ROWS)
        if self._backend.kv.element_size() == 2 and self._few_rows.serves():
            ways = {"cublas": False, "few_rows": True}
            graphs = {name: self._captured(few, few_rows=way) for name, way in ways.items()}
            self.times_ms = {name: _step_ms(graph.graph) for name, graph in graphs.items()}
            self.few_rows_are_faster = self.times_ms["few_rows"] < self.times_ms["cublas"]
        for size in reversed(self._sizes):
            way = self.few_rows_are_faster and size <= MAX_ROWS
            self._graphs[size] = self._captured(size, few_rows=way)

    def _captured(self, size: int, *, few_rows: bool) -> _Graph:
        graph = _Graph(size, self._tables)
        run = self._few_rows.run if few_rows else self._model.run
        choices_of(run(CudaStep(self._backend, graph.arrays.inputs)))  # compiles the kernels
        torch.cuda.synchronize()
        with torch.cuda.graph(graph.graph, pool=self._pool):
            graph.choices = choices_of(run(CudaStep(self._backend, graph.arrays.inputs)))
        self._pool = graph.graph.pool()
        return graph

    def fits(self, batch: RaggedBatch) -> bool:
        """Whether a graph can run this batch: every sequence has one new token, and they are not too many."""
        fits = batch.num_tokens == batch.num_sequences == len(batch.sample_rows)
        return bool(self._graphs) and fits and batch.num_tokens <= self._sizes[-1]

    def run(self, batch: RaggedBatch) -> Choices:
        """Start the step; the result is valid until the next `run` and has one row a sequence."""
        count = batch.num_sequences
        size = next(size for size in self._sizes if size >= count)
        graph = self._graphs[size]
        self._backend.staging.upload_into(graph.arrays, batch)
        graph.graph.replay()
        assert graph.choices is not None
        return Choices(graph.choices.logits[:count], graph.choices.greedy[:, :count])


def _step_ms(graph: torch.cuda.CUDAGraph) -> float:
    """The least time of some replays."""
    times: list[float] = []
    for _ in range(_TRIALS):
        start, end = (_timed_event() for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return min(times)


def _timed_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

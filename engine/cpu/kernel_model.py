"""A model in the C kernels, a whole step a call: every sum has one order, so that equal tokens give equal bits.

A row's products, norms and attention are the same operations in the same order whatever else is in
the batch, however its prompt was cut and on however many threads (docs/adr/0012-one-order-of-every-sum.md).
Owns what the C side points to: panels, norms, the table of rotations and the room for intermediate results.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import TYPE_CHECKING

import torch

from engine.cpu.adapter_layers import segments_of
from engine.cpu.kernel_library import Decoder, Kernels, Layer, Matrix, Product, Step
from engine.cpu.lending import Team
from engine.cpu.panels import is_gated, pack
from engine.cpu.quantized_sizes import GROUP
from engine.model.rope import rope_table
from protocol.quantization import Quantization

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.cpu.lending import LentCores
    from engine.cpu.step_sizes import StepLimits
    from engine.model.ragged_batch import RaggedBatch
    from engine.model.weights import WeightSource
    from protocol.model_config import ModelConfig

KV_LAYOUT = "block:layer:head:(key:dim/pair:token:pair,value:token/pair:dim:pair)"
"""In bfloat16 a pair is two elements, in float32 one: 32 bits; and one where a block has one token."""


class KernelModel:
    """Computes like engine.model.decoder.Model; holds no state between steps but what is in the KV blocks."""

    kv_layout = KV_LAYOUT

    def __init__(
        self,
        config: ModelConfig,
        weights: WeightSource,
        kv: torch.Tensor,
        kernels: Kernels,
        panels: Mapping[str, torch.Tensor],
        lent: LentCores | None = None,
    ) -> None:
        """`kv` is the pool, a block a row. `panels` has packed matrices by name; what it lacks is packed here.
        `lent` has cores of others that may help."""
        self.config = config
        self.arithmetic = kernels.arithmetic
        self.description = f"cpu (C kernels {kernels.arithmetic}, exact)"
        self.num_threads = torch.get_num_threads()
        self.block_size: int = kv.shape[4]
        self.max_context_tokens = min(config.max_position_embeddings, kv.shape[0] * self.block_size)
        self._kernels = kernels
        self._kv = kv
        self._parts = Parts(kernels, weights, panels)
        self._embed = weights.get("embed")
        self._rope = rope_table(config, self.max_context_tokens)
        self._layers = (Layer * config.num_layers)(
            *(self._parts.layer(f"layers.{index}") for index in range(config.num_layers))
        )
        self._decoder = Decoder(
            layers=self._layers,
            norm=self._parts.vector("norm"),
            head=self._parts.matrix("embed" if weights.find("head") is None else "head"),
            rope=self._rope.data_ptr(),
            num_layers=config.num_layers,
            hidden=config.hidden_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            window=config.sliding_window or 0,
            epsilon=config.rms_norm_eps,
            scale=config.head_dim**-0.5,
        )
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self._spare = torch.empty(0, dtype=torch.uint8)
        self._passing = torch.empty(0, dtype=torch.uint8)
        self._is_reserved = False
        self._team = Team(kernels, lent)
        # Before anything that they read goes, be it with this model or with the process.
        weakref.finalize(self, self._team.close)

    def reserve(self, limits: StepLimits) -> None:
        """Take the scratch of the largest step now, so that no step takes more for good later."""
        adapted = limits.tokens if limits.adapts else 0
        rows = limits.tokens, limits.samples, self._team.size, adapted
        size = self._kernels.scratch_bytes(self._decoder, *rows)
        self._scratch = torch.empty(size, dtype=torch.uint8)
        self._scratch.zero_()  # an untouched page is not taken
        self._is_reserved = True

    def forward(self, batch: RaggedBatch) -> torch.Tensor:
        """Compute the KV of every new token; [len(sample_rows), vocab] float32 logits."""
        residual = self._embed[torch.from_numpy(batch.token_ids)]
        shape = (len(batch.sample_rows), self.config.vocab_size)
        logits = torch.empty(shape, dtype=residual.dtype)
        self._run(self.step(batch, residual, logits), batch, residual, logits)
        return logits.float()

    def _run(self, step: Step, batch: RaggedBatch, *tensors: torch.Tensor) -> None:
        self._kernels.forward(step)
        if step.team is not None:
            self._team.keep(step, batch, tensors, self._scratch, self._passing, self._kv)
        self._passing = torch.empty(0, dtype=torch.uint8)

    def states(self, batch: RaggedBatch) -> torch.Tensor:
        """Compute the KV of every new token; [len(sample_rows), hidden] states after the final norm."""
        residual = self._embed[torch.from_numpy(batch.token_ids)]
        shape = (len(batch.sample_rows), self.config.hidden_size)
        states = torch.empty(shape, dtype=residual.dtype)
        step = self.step(batch, residual, states)
        step.states = states.data_ptr()
        self._run(step, batch, residual, states)
        return states

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """[rows, vocab] float32 logits of such states: the same bits as `forward` has."""
        rows, head = len(states), self._decoder.head
        logits = torch.empty((rows, self.config.vocab_size), dtype=states.dtype)
        wide = torch.empty((rows, self.config.hidden_size + GROUP), dtype=torch.float32)
        product = Product(
            matrix=ctypes.pointer(head),
            x=states.data_ptr(),
            out=logits.data_ptr(),
            wide=wide.data_ptr(),
            rows=rows,
            adds=0,
            num_threads=self.num_threads,
        )
        self._kernels.product(product)
        return logits.float()

    def close(self) -> None:
        """End the threads on lent cores, which read the KV."""
        self._team.close()

    def step(self, batch: RaggedBatch, residual: torch.Tensor, logits: torch.Tensor) -> Step:
        """What the C side gets; it points into `batch` and the tensors."""
        segments = segments_of(batch, self.config.num_layers) if batch.adapters else None
        team = None if self._team.is_read else self._team.pointer
        adapted = batch.num_tokens - batch.adapters[0].first if batch.adapters else 0
        return Step(
            decoder=ctypes.pointer(self._decoder),
            kv=self._kv.data_ptr(),
            positions=batch.positions.ctypes.data,
            query_starts=batch.query_starts.ctypes.data,
            block_tables=batch.block_tables.ctypes.data,
            sample_rows=batch.sample_rows.ctypes.data,
            residual=residual.data_ptr(),
            scratch=self._room(batch.num_tokens, len(batch.sample_rows), adapted, team),
            logits=logits.data_ptr(),
            team=team,
            table_width=batch.block_tables.shape[1],
            num_sequences=batch.num_sequences,
            num_tokens=batch.num_tokens,
            num_samples=len(batch.sample_rows),
            block_size=self.block_size,
            num_threads=self.num_threads,
            segments=segments,
            num_segments=len(batch.adapters),
        )

    def _room(self, num_tokens: int, num_samples: int, num_adapted: int, team: int | None) -> int:
        """Scratch that is kept: fresh memory costs a page fault for every 4 KiB. Once it is reserved, only a step that scores
        prompts needs more, and has that while it lasts. A step without a team has another one: lent threads that are not
        back may still read the first."""
        rows = num_tokens, num_samples, self._team.size if team else 0, num_adapted
        needed = self._kernels.scratch_bytes(self._decoder, *rows)
        if team is None and self._team.size:
            self._spare = room = _at_least(needed, self._spare)
        elif self._is_reserved and needed > len(self._scratch):
            self._passing = room = _at_least(needed, self._passing)
        else:
            self._scratch = room = _at_least(needed, self._scratch)
        return room.data_ptr()


def _at_least(num_bytes: int, room: torch.Tensor) -> torch.Tensor:
    return room if len(room) >= num_bytes else torch.empty(num_bytes, dtype=torch.uint8)


class Parts:
    """Weights in the form that the C side points to, kept alive."""

    def __init__(
        self, kernels: Kernels, weights: WeightSource, panels: Mapping[str, torch.Tensor]
    ) -> None:
        self._kernels, self._weights, self._panels = kernels, weights, panels
        self._kept: list[torch.Tensor] = []

    def layer(self, prefix: str) -> Layer:
        """One layer by the prefix of its names."""
        return Layer(
            **{part: self.matrix(f"{prefix}.{part}") for part in ("qkv", "out", "gate_up", "down")},
            **{name: self.vector(f"{prefix}.{name}") for name in ("input_norm", "post_norm")},
            **{name: self._optional(f"{prefix}.{name}") for name in ("q_norm", "k_norm")},
        )

    def matrix(self, name: str) -> Matrix:
        """A matrix in panels; one with gate and up ends with silu(gate) * up."""
        weight, panels = self._weights.get(name), self._panels.get(name)
        if panels is None:
            panels = pack(self._kernels, name, weight)
        gated = is_gated(name)
        return Matrix(
            panels=self._keep(panels),
            bias=self._optional(f"{name}_bias"),
            outputs=weight.shape[0] // 2 if gated else weight.shape[0],
            words=panels.shape[1],
            gated=gated,
            inputs=weight.shape[1],
            quantized=self._kernels.quantization is Quantization.INT8,
        )

    def vector(self, name: str) -> int:
        """A norm's weights."""
        return self._keep(self._weights.get(name))

    def _optional(self, name: str) -> int | None:
        found = self._weights.find(name)
        return None if found is None else self._keep(found)

    def _keep(self, tensor: torch.Tensor) -> int:
        tensor = tensor.contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

"""Each C kernel called by itself, and the kernels' order of a block's bytes in plain torch."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from deploy.config.topology import cache_directory
from engine.cpu.kernel_library import Decoder, Kernels, Layer, Matrix, Product, Step, load_kernels
from engine.cpu.panels import pack
from engine.cpu.quantized_sizes import GROUP
from engine.model.rope import rope_table
from protocol.quantization import Quantization

if TYPE_CHECKING:
    from engine.cpu.lending import Team
    from engine.model.ragged_batch import RaggedBatch
    from protocol.model_config import ModelConfig

ROOM_BYTES = 1 << 22
"""More than any result that is tested with lent threads."""


def kernels_for(
    dtype: torch.dtype,
    target: str = "native",
    quantization: Quantization = Quantization.NONE,
) -> Kernels:
    """From the cache that is named by their content, as everything else that takes long to make."""
    suffix = "f32" if dtype == torch.float32 else "bf16"
    return load_kernels(cache_directory() / "kernels", suffix, target, quantization)


def pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class PackedMatrix:
    """A matrix in panels, ready to multiply on `num_threads` threads."""

    def __init__(
        self,
        kernels: Kernels,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        gated: bool = False,
    ) -> None:
        self.num_threads = 1
        self._kernels, self._bias = kernels, bias
        self._team: Team | None = None
        self._panels = pack(kernels, "gate_up" if gated else "x", weight)
        self._matrix = Matrix(
            panels=self._panels.data_ptr(),
            bias=pointer(bias),
            outputs=weight.shape[0] // 2 if gated else weight.shape[0],
            words=self._panels.shape[1],
            gated=gated,
            inputs=weight.shape[1],
            quantized=kernels.quantization is Quantization.INT8,
        )

    def lend(self, team: Team) -> None:
        """Let the team's threads help from now on."""
        self._team = team
        self._rooms = torch.empty(team.size, ROOM_BYTES, dtype=torch.uint8)
        self._kernels.begin_lending(team.pointer, self._rooms.data_ptr(), ROOM_BYTES)

    def __call__(self, x: torch.Tensor, added: torch.Tensor | None = None) -> torch.Tensor:
        """The product; with `added`, its sum with that."""
        x = x.contiguous()
        out = torch.empty((x.shape[0], self._matrix.outputs), dtype=x.dtype)
        if added is not None:
            out.copy_(added)
        room = (x.shape[0], x.shape[1] + GROUP)
        wide = torch.empty(room, dtype=torch.float32) if self._kernels.widens else None
        self._kernels.product(
            Product(
                matrix=ctypes.pointer(self._matrix),
                x=x.data_ptr(),
                out=out.data_ptr(),
                wide=pointer(wide),
                team=None if self._team is None else self._team.pointer,
                rows=x.shape[0],
                adds=added is not None,
                num_threads=self.num_threads,
            )
        )
        if self._team is not None:  # as after a step: who is late still reads
            self._team.keep(x, wide, out, self)
        return out


def norm(kernels: Kernels, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    out = torch.empty_like(x)
    kernels.norm(x.data_ptr(), weight.data_ptr(), out.data_ptr(), *x.shape, epsilon, 1)
    return out


class Attention:
    """Rotation, writing of KV and attention of one model's layers over `kv`, a pool in the kernels' order."""

    def __init__(
        self,
        config: ModelConfig,
        kv: torch.Tensor,
        kernels: Kernels,
        head_norm: torch.Tensor | None = None,
    ) -> None:
        self.kv, self.num_threads = kv, 1
        self._config, self._kernels = config, kernels
        self._rope = rope_table(config, kv.shape[0] * kv.shape[4])
        layer = Layer(q_norm=pointer(head_norm), k_norm=pointer(head_norm))
        self._layers = (Layer * config.num_layers)(*[layer] * config.num_layers)
        self._head_norm = head_norm

    def __call__(self, batch: RaggedBatch, qkv: torch.Tensor, layer: int) -> torch.Tensor:
        config = self._config
        decoder = Decoder(
            layers=self._layers,
            rope=self._rope.data_ptr(),
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            window=config.sliding_window or 0,
            epsilon=config.rms_norm_eps,
            scale=config.head_dim**-0.5,
        )
        step = Step(
            decoder=ctypes.pointer(decoder),
            kv=self.kv.data_ptr(),
            positions=batch.positions.ctypes.data,
            query_starts=batch.query_starts.ctypes.data,
            block_tables=batch.block_tables.ctypes.data,
            table_width=batch.block_tables.shape[1],
            num_sequences=batch.num_sequences,
            num_tokens=batch.num_tokens,
            block_size=self.kv.shape[4],
            num_threads=self.num_threads,
        )
        query, out = torch.empty(
            (2, batch.num_tokens, config.num_heads * config.head_dim), dtype=qkv.dtype
        )
        self._kernels.attend(step, layer, qkv.data_ptr(), query.data_ptr(), out.data_ptr())
        return out


def turned(kv: torch.Tensor) -> torch.Tensor:
    """[blocks, layers, 2, heads, tokens, dim] with the bytes of every block in the kernels' order."""
    pair, value_pair = _pairs(kv)
    keys, values = kv.unbind(2)
    keys = keys.unflatten(-1, (-1, pair)).transpose(3, 4)
    values = values.unflatten(-2, (-1, value_pair)).transpose(4, 5)
    return torch.cat((keys.flatten(3), values.flatten(3)), dim=-1).view(kv.shape)


def turned_back(kv: torch.Tensor) -> torch.Tensor:
    """What `turned` made, as it was."""
    pair, value_pair = _pairs(kv)
    blocks, layers, _, heads, tokens, dim = kv.shape
    keys, values = kv.reshape(blocks, layers, heads, 2, tokens * dim).unbind(3)
    keys = keys.unflatten(-1, (dim // pair, tokens, pair)).transpose(3, 4).flatten(4)
    values = values.unflatten(-1, (tokens // value_pair, dim, value_pair)).transpose(4, 5)
    return torch.stack((keys, values.flatten(3, 4)), dim=2)


def _pairs(kv: torch.Tensor) -> tuple[int, int]:
    pair = 4 // kv.dtype.itemsize
    return pair, min(pair, kv.shape[4])

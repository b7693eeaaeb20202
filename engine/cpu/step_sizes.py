"""What the largest step takes beside the KV blocks. Owns the arithmetic; torch-free, so that a launcher can count it before a start.

The kernels say the exact size of their scratch (kernels/forward.h); this is never less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.cpu.quantized_sizes import GROUP

if TYPE_CHECKING:
    from protocol.model_config import ModelConfig

MAX_LENT_CORES = 15
"""As kernels/lending.h has it."""
FLOAT_BYTES = 4
ROUNDING_BYTES = 1024
"""For the alignment of every array."""


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The largest step that a scheduler makes: rows in it, rows of those that are sampled, and whether they may have adapters.
    A step that scores prompts has more logits."""

    tokens: int
    samples: int
    adapts: bool = False

    @classmethod
    def of(cls, max_batched_tokens: int, max_seqs: int, *, adapts: bool = False) -> StepLimits:
        """Every running sequence has its token whatever the budget of a step is."""
        return cls(max(max_batched_tokens, max_seqs), max_seqs, adapts)


def step_bytes(
    config: ModelConfig,
    element_bytes: int,
    limits: StepLimits,
    num_lent_cores: int = 0,
    num_scored: int = 0,
) -> int:
    """Bytes of a worker's arrays at its largest step: scratch, states, and logits in two forms. With lent cores there is
    scratch twice: a step is computed with another one while a lent thread has not left the first. `num_scored` rows of
    prompts have logits beside those that are sampled."""
    num_lent_cores = min(num_lent_cores, MAX_LENT_CORES)
    own = _own_bytes(config, element_bytes, limits) + ROUNDING_BYTES
    scratch = own + num_lent_cores * _room_bytes(config, element_bytes, limits)
    scratch += own if num_lent_cores else 0
    states = limits.tokens * config.hidden_size * element_bytes
    told = min(limits.tokens, limits.samples + num_scored)
    logits = told * config.vocab_size * (element_bytes + FLOAT_BYTES)
    return scratch + states + logits


def _widths(config: ModelConfig) -> tuple[int, int, int]:
    """Elements of a row: of all heads, of q, k and v together, and the most that a product reads."""
    heads = config.num_heads * config.head_dim
    qkv = heads + 2 * config.num_kv_heads * config.head_dim
    return heads, qkv, max(config.hidden_size, heads, config.intermediate_size)


def _own_bytes(config: ModelConfig, element_bytes: int, limits: StepLimits) -> int:
    heads, qkv, widest = _widths(config)
    elements = config.hidden_size + qkv + 2 * heads + config.intermediate_size
    row = elements * element_bytes + (widest + GROUP) * FLOAT_BYTES
    if limits.adapts:
        row += _extra_row_bytes(config)
    return limits.tokens * row


def _extra_row_bytes(config: ModelConfig) -> int:
    """What an adapter adds to a row of the widest product."""
    _, qkv, _ = _widths(config)
    return max(2 * config.intermediate_size, qkv, config.hidden_size) * FLOAT_BYTES


def _room_bytes(config: ModelConfig, element_bytes: int, limits: StepLimits) -> int:
    """Of one lent thread: the widest result."""
    _, qkv, widest = _widths(config)
    elements = max(limits.tokens * max(widest, qkv), limits.samples * config.vocab_size)
    extra = limits.tokens * _extra_row_bytes(config) if limits.adapts else 0
    return max(elements * element_bytes, extra) + ROUNDING_BYTES

"""Rotary parameters of a config.json. Owns which kinds there are and what each needs; the tables are engine.model.rope's.

Newer files have `rope_parameters` with everything in it; older ones `rope_theta`, and `rope_scaling` for what
departs from plain rotation. A key of another kind has no effect, here as in transformers; an unknown one is refused,
and so is a null where transformers computes with it. YaRN alone has nulls that mean something: `truncate` is false then,
and the others are derived or have their defaults.

    default, dynamic    plain: dynamic differs only beyond max_position_embeddings, where nothing is served
    linear, llama3, yarn
    longrope            refused: its frequencies change with the length of the whole sequence, so blocks of KV could
                        not be shared or kept while it grows
"""

from __future__ import annotations

import math

from engine.checkpoints.fields import Fields, shown
from protocol.model_config import RopeScaling

_KNOWN = frozenset(
    {
        *("rope_type", "type", "rope_theta", "factor", "partial_rotary_factor", "attention_factor"),
        *("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
        *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
        *("short_factor", "long_factor", "finetuned"),
    }
)
SUPPORTED = ("default", "linear", "dynamic", "llama3", "yarn")
DEFAULT_THETA = 10_000.0


def read_rope(config: Fields, max_positions: int) -> tuple[float, RopeScaling]:
    """(theta, scaling); ConfigError names the field that is missing, wrong or not supported."""
    rope = _parameters(config)
    theta = rope.number(
        "rope_theta", config.number("rope_theta", DEFAULT_THETA, above=True), above=True
    )
    for fields in (rope, config):
        if fields.has("partial_rotary_factor") and fields.number("partial_rotary_factor") != 1.0:
            fields.refuse("partial_rotary_factor", "is supported as 1.0 only")
    kind = rope.text("rope_type" if "rope_type" in rope.values else "type", "default")
    if kind not in SUPPORTED:
        rope.refuse(
            "rope_type", f"{shown(kind)} is not supported; supported: {', '.join(SUPPORTED)}"
        )
    if kind == "linear":
        return theta, RopeScaling(kind="linear", factor=rope.number("factor", above=True))
    if kind == "llama3":
        return theta, _llama3(config, rope, max_positions)
    if kind == "yarn":
        if theta <= 1.0:
            rope.refuse("rope_theta", f"must be more than 1 with yarn, not {shown(theta)}")
        return theta, _yarn(config, rope, max_positions)
    if kind == "dynamic":
        rope.number("factor", above=True)
    return theta, RopeScaling()


def _parameters(config: Fields) -> Fields:
    name = "rope_scaling" if config.values.get("rope_scaling") else "rope_parameters"
    value = config.values.get(name) or {}
    if not isinstance(value, dict):
        config.refuse(name, f"must be an object, not {shown(value)}")
    for key in value:
        if key not in _KNOWN and value[key] is not None:
            config.refuse(f"{name}.{shown(key)[1:-1]}", "is not supported for this architecture")
    return Fields(value, f"{config.where}: {name}")


def _original_positions(config: Fields, rope: Fields, max_positions: int) -> int:
    """transformers puts the field beside the rotary parameters before the one among them."""
    name = "original_max_position_embeddings"
    return (config if name in config.values else rope).integer(name, max_positions)


def _llama3(config: Fields, rope: Fields, max_positions: int) -> RopeScaling:
    low, high = rope.number("low_freq_factor", above=True), rope.number("high_freq_factor")
    if high <= low:
        rope.refuse("high_freq_factor", f"must be more than low_freq_factor {low:g}, not {high:g}")
    return RopeScaling(
        kind="llama3",
        factor=rope.number("factor", above=True),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position=_original_positions(config, rope, max_positions),
    )


def _yarn(config: Fields, rope: Fields, max_positions: int) -> RopeScaling:
    original = _original_positions(config, rope, max_positions)
    derived = _is_null(rope, "factor")
    factor = max_positions / original if derived else rope.number("factor", above=True)
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_max_position=original,
        beta_fast=_number_or_zero(rope, "beta_fast") or 32.0,
        beta_slow=_number_or_zero(rope, "beta_slow") or 1.0,
        truncate=not _is_null(rope, "truncate") and rope.flag("truncate", default=True),
        attention_factor=_attention_factor(rope, factor),
    )


def _is_null(rope: Fields, name: str) -> bool:
    return name in rope.values and not rope.has(name)


def _number_or_zero(rope: Fields, name: str) -> float:
    return rope.number(name) if rope.has(name) else 0.0


def _attention_factor(rope: Fields, factor: float) -> float:
    if rope.has("attention_factor"):
        return rope.number("attention_factor", above=True)
    mscale, all_dim = _number_or_zero(rope, "mscale"), _number_or_zero(rope, "mscale_all_dim")
    if mscale and all_dim:
        return yarn_temperature(factor, mscale) / yarn_temperature(factor, all_dim)
    return yarn_temperature(factor)


def yarn_temperature(factor: float, mscale: float = 1.0) -> float:
    """What YaRN multiplies cosines and sines with (arXiv 2309.00071, section 3.4)."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0

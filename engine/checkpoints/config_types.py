"""Types of a config.json's fields. Owns what transformers declares of those that have no effect on a greedy answer; torch-free.

A field without effect that has a type of its own and another value (`use_cache: -2.5`) is a sign of a file that is spoilt or
means something else, and transformers refuses it. So does this, by name. An integer stands for a number with a fraction,
as JSON has it. Fields that are used are checked where they are used; names that transformers does not declare may have
any value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from engine.checkpoints.fields import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.checkpoints.fields import Fields


class Declared(NamedTuple):
    """What a value must be, in words, and whether it is that."""

    told: str
    holds: Callable[[Any], bool]


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, float) or _is_integer(value)


def _or_null(declared: Declared) -> Declared:
    return Declared(
        f"{declared.told} or null", lambda value: value is None or declared.holds(value)
    )


TORCH_DTYPES = frozenset(
    {
        *("float64", "float32", "float16", "bfloat16", "double", "float", "half"),
        *("float8_e4m3fn", "float8_e5m2", "auto"),
    }
)
"""`auto` is what older files have for what the weights are."""
_FLAG = Declared("true or false", lambda value: isinstance(value, bool))
_INTEGER = Declared("an integer", _is_integer)
_NUMBER = Declared("a number", _is_number)
_SHARE = Declared("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
_TEXT = Declared("a string", lambda value: isinstance(value, str))
_OBJECT = Declared("an object", lambda value: isinstance(value, dict))
_LIST = Declared("a list", lambda value: isinstance(value, list))
_DTYPE = Declared(
    "the name of a kind of floating-point numbers",
    lambda value: isinstance(value, str) and value in TORCH_DTYPES,
)
DECLARED: dict[str, Declared] = {
    "use_cache": _FLAG,
    "initializer_range": _SHARE,
    "attention_dropout": _or_null(_NUMBER),
    "pretraining_tp": _or_null(_INTEGER),
    "pad_token_id": _or_null(_INTEGER),
    "bos_token_id": _or_null(_INTEGER),
    "torch_dtype": _or_null(_DTYPE),
    "dtype": _or_null(_DTYPE),
    "max_window_layers": _INTEGER,
    "sliding_window": _or_null(_INTEGER),
    "use_sliding_window": _FLAG,
    "layer_types": _or_null(_LIST),
    "rope_parameters": _or_null(_OBJECT),
    "rope_scaling": _or_null(_OBJECT),
    "per_layer_config": _or_null(_OBJECT),
    "id2label": _or_null(_OBJECT),
    "label2id": _or_null(_OBJECT),
    "num_labels": _or_null(_INTEGER),
    "output_hidden_states": _or_null(_FLAG),
    "output_attentions": _or_null(_FLAG),
    "return_dict": _or_null(_FLAG),
    "is_encoder_decoder": _or_null(_FLAG),
    "is_causal": _or_null(_FLAG),
    "is_decoder": _or_null(_FLAG),
    "add_cross_attention": _or_null(_FLAG),
    "chunk_size_feed_forward": _or_null(_INTEGER),
    "problem_type": _or_null(_TEXT),
    "transformers_version": _or_null(_TEXT),
}
"""Some of them are used by one architecture and have no effect in another."""


def check_types(fields: Fields) -> None:
    """ConfigError for the first field whose value has another type than transformers declares."""
    for name, declared in DECLARED.items():
        if name in fields.values and not declared.holds(fields.values[name]):
            fields.refuse(name, f"must be {declared.told}, not {shown(fields.values[name])}")

"""A value that transformers refuses for its type is refused here, by the name of its field, whether it has an effect or not."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest

from engine.checkpoints.hugging_face_config import parse_config
from protocol.errors import ConfigError
from tests.property.model_fields import ARCHITECTURES, FIELDS, GONE, WILD, Case
from tests.property.model_grid import config_of, known_to

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

VAST = {2**40, 1e308}
"""What a library that believes a file would make lists of."""
DECLARED = {
    field.name
    for name in ARCHITECTURES
    for field in dataclasses.fields(getattr(transformers, f"{name}Config"))
}
OUR_OWN_WAY: dict[str, Any] = {
    "rms_norm_eps": "an integer stands for a number with a fraction",
    "initializer_range": "likewise",
    "hidden_size": "no multiple of the heads, beside a head_dim that is given",
    "num_key_value_heads": "null is as many as heads, in files of an earlier transformers",
    "attention_dropout": "null is none",
    "model_type": "null beside an architecture that is named",
    "id2label": "only its kind matters",
    "num_labels": "null is none",
}
"""What is served although the newest transformers refuses it, and why nothing is guessed there."""


def is_theirs(raw: dict[str, Any], model_type: str) -> bool:
    try:
        transformers.AutoConfig.for_model(**{"model_type": model_type} | raw)
    except Exception:  # noqa: BLE001 - whatever the reason
        return False
    return True


def refusal(raw: dict[str, Any]) -> str | None:
    try:
        parse_config(raw)
    except ConfigError as error:
        return str(error)
    return None


def values_of(name: str) -> list[Any]:
    own = [value for value in FIELDS.get(name, ()) if value is not GONE]
    return [
        value for value in (*WILD, *own) if not (isinstance(value, float | int) and value in VAST)
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_type_is_taken_that_transformers_refuses(architecture: str) -> None:
    served = set()
    for name in sorted(DECLARED | set(FIELDS)):
        for value in values_of(name):
            case = Case(0, architecture, "", "", {name: value})
            raw = known_to(case, config_of(case))
            if raw["model_type"] == architecture.lower() and not is_theirs(raw, "llama"):
                sentence = refusal(config_of(case))
                if sentence is None and value != "auto":
                    served.add(name)
    assert served <= OUR_OWN_WAY.keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("use_cache", -2.5), ("use_cache", 1), ("use_cache", None), ("initializer_range", "8")],
        *[("initializer_range", -1), ("pad_token_id", 0.5), ("pad_token_id", True)],
        *[("pretraining_tp", "auto"), ("attention_dropout", []), ("torch_dtype", "")],
        *[("torch_dtype", "torch.float16"), ("dtype", 5), ("bos_token_id", [1])],
        *[("rope_scaling", False), ("rope_parameters", ""), ("per_layer_config", [])],
        *[("is_encoder_decoder", 0), ("output_attentions", "no"), ("id2label", "x")],
        *[("transformers_version", 5), ("chunk_size_feed_forward", {})],
    ],
)
def test_a_field_of_the_wrong_type_is_named(name: str, value: object) -> None:
    sentence = refusal(config_of(Case(0, "Llama", "", "", {name: value})))
    assert sentence is not None
    assert sentence.startswith(f"config.json: `{name}` must be ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("use_cache", True), ("initializer_range", 1), ("initializer_range", 0.02)],
        *[("attention_dropout", 0), ("attention_dropout", None), ("pad_token_id", -1)],
        *[("torch_dtype", "bfloat16"), ("torch_dtype", "auto"), ("dtype", None)],
        *[
            ("bos_token_id", None),
            ("rope_scaling", None),
            ("rope_scaling", {}),
            ("layer_types", None),
        ],
        *[("output_hidden_states", None), ("sliding_window", None), ("is_causal", None)],
        *[("something_of_their_own", -2.5), ("auto_map", {"AutoModel": "x.Y"})],
    ],
)
def test_a_field_of_its_own_type_has_no_effect(name: str, value: object) -> None:
    case = config_of(Case(0, "Llama", "", "", {name: value}))
    assert parse_config(case) == parse_config(config_of(Case(0, "Llama", "", "", {})))

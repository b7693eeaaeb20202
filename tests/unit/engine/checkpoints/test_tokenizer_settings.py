"""Tokens that only tokenizer_config.json knows: transformers adds them, so texts would be read otherwise; refused by field."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoints.source import open_checkpoint
from protocol.errors import ConfigError
from tests.unit.engine.checkpoints.test_checkpoints import write_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

NEW = {"content": "<|new|>", "special": True, "normalized": False}
TEXT = "w5 <|new|> w6"


def write(directory: Path, settings: dict[str, Any]) -> Path:
    write_model(directory)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | settings
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


CHANGING = [
    {"added_tokens_decoder": {"32": NEW}},
    {"additional_special_tokens": ["<|new|>"]},
    {"extra_special_tokens": ["<|new|>"]},
    {"eos_token": "<|new|>"},
    {"bos_token": NEW | {"__type": "AddedToken"}},
]


@pytest.mark.parametrize("settings", CHANGING)
def test_a_token_that_transformers_would_add_is_named(tmp_path: Path, settings: Any) -> None:
    model, field = write(tmp_path, settings), next(iter(settings))
    peer = transformers.PreTrainedTokenizerFast.from_pretrained(model)
    plain = transformers.PreTrainedTokenizerFast(tokenizer_file=str(model / "tokenizer.json"))
    assert peer.encode(TEXT) != plain.encode(TEXT)
    with pytest.raises(ConfigError, match=rf"tokenizer_config.json: `{field}` names '<\|new\|>'"):
        open_checkpoint(model)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"split_special_tokens": True}, "`split_special_tokens`"),
        ({"added_tokens_decoder": {"7": {"content": "w5"}}}, "'w5' '7', which is 5"),
    ],
)
def test_what_would_be_read_otherwise_is_named(tmp_path: Path, settings: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        open_checkpoint(write(tmp_path, settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"added_tokens_decoder": {"5": {"content": "w5", "special": True}}},
        {"additional_special_tokens": ["w7"], "eos_token": "w3", "split_special_tokens": False},
        {"extra_special_tokens": {"image_token": "w9"}, "pad_token": "<pad>", "bos_token": None},
        {"added_tokens_decoder": None, "additional_special_tokens": None},
    ],
)
def test_tokens_that_are_there_may_be_named(tmp_path: Path, settings: Any) -> None:
    assert open_checkpoint(write(tmp_path, settings)).tensors

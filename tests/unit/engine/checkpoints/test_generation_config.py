"""generation_config.json: what is used has a range, what is not used and would change answers refuses the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoints.source import open_checkpoint
from protocol.errors import ConfigError
from tests.unit.engine.checkpoints.test_bad_files import CONFIG, write_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"eos_token_id": "x"}, "eos_token_id"),
        ({"eos_token_id": [1.5]}, "eos_token_id"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": -2}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": 0}, "top_p"),
        ({"min_p": 1.1}, "min_p"),
        ({"temperature": 1e300}, "temperature"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"num_beams": 4}, "num_beams"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size"),
        ({"suppress_tokens": [1]}, "suppress_tokens"),
        ({"bad_words_ids": [[1]]}, "bad_words_ids"),
        ({"forced_bos_token_id": 0}, "forced_bos_token_id"),
        ({"stop_strings": ["x"]}, "stop_strings"),
        ({"min_new_tokens": 5}, "min_new_tokens"),
        ({"typical_p": 0.9}, "typical_p"),
    ],
    ids=str,
)
def test_the_field_is_named(model: Path, content: dict[str, Any], named: str) -> None:
    (model / "generation_config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=rf"generation_config\.json: `{named}`"):
        open_checkpoint(model)


def test_what_asks_for_nothing_and_what_clients_decide_is_no_matter(model: Path) -> None:
    generation: dict[str, Any] = {
        "num_beams": 1,
        "no_repeat_ngram_size": 0,
        "bad_words_ids": None,
        "suppress_tokens": [],
        "typical_p": 1.0,
        "forced_eos_token_id": None,
        "max_length": 20,
        "do_sample": True,
        "max_new_tokens": 9,
        "temperature": None,
        "top_k": -1,
        "top_p": 1,
        "min_length": 0,
    }
    (model / "generation_config.json").write_text(json.dumps(generation))
    assert open_checkpoint(model).warnings == []


def test_without_a_file_of_its_own_config_json_has_the_settings(model: Path) -> None:
    spoken = CONFIG | {"temperature": 0.25, "repetition_penalty": 1.5}
    (model / "config.json").write_text(json.dumps(spoken))
    told = json.loads(open_checkpoint(model).files["generation_config.json"])
    assert (told["temperature"], told["repetition_penalty"]) == (0.25, 1.5)
    (model / "config.json").write_text(json.dumps(CONFIG | {"num_beams": 4}))
    with pytest.raises(ConfigError, match=r"config\.json: `num_beams`"):
        open_checkpoint(model)
    (model / "generation_config.json").write_text("{}")
    assert open_checkpoint(model).warnings == []

"""generation_config.json: what is used has a range, what is not used and would change answers refuses the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import GenerationConfig

from engine.checkpoints.fields import Fields
from engine.checkpoints.generation import GENERATION_FIELDS, gguf_generation
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
        ({"do_sample": "no"}, "do_sample"),
        ({"do_sample": 0}, "do_sample"),
        ({"cache_implementation": "quantized"}, "cache_implementation"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"sequence_bias": {"[1]": -10.0}}, "sequence_bias"),
        ({"exponential_decay_length_penalty": [5, 1.1]}, "exponential_decay_length_penalty"),
        ({"watermarking_config": {"bias": 2.0}}, "watermarking_config"),
        ({"token_healing": True}, "token_healing"),
        ({"penalty_alpha": 0.6}, "penalty_alpha"),
        ({"dola_layers": "low"}, "dola_layers"),
        ({"top_h": 0.4}, "top_h"),
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


USED = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "do_sample", "eos_token_id"}
CLIENTS_SAY = {"max_length", "max_new_tokens", "max_time", "num_return_sequences"}
FOR_BEAMS_ALONE = {"early_stopping", "length_penalty"}
WITHOUT_EFFECT = {
    *("renormalize_logits", "remove_invalid_values", "use_mtp", "use_cache", "cache_config"),
    *("max_cache_len", "output_attentions", "output_hidden_states", "output_scores"),
    *("output_logits", "return_dict_in_generate", "pad_token_id", "bos_token_id"),
    *("decoder_start_token_id", "is_assistant", "num_assistant_tokens", "compile_config"),
    *("num_assistant_tokens_schedule", "assistant_confidence_threshold", "disable_compile"),
    *("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit"),
    *("assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight", "low_memory"),
    *("speculation_type", "continuous_batching_config", "prefill_chunk_size"),
    "transformers_version",
}


def test_every_setting_of_transformers_is_used_refused_or_known_to_be_harmless() -> None:
    theirs = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    known = USED | CLIENTS_SAY | FOR_BEAMS_ALONE | WITHOUT_EFFECT
    assert theirs - GENERATION_FIELDS - known == set()
    assert not (GENERATION_FIELDS & (CLIENTS_SAY | FOR_BEAMS_ALONE | WITHOUT_EFFECT))


def keys(**sampling: float) -> Fields:
    return Fields({f"general.sampling.{name}": value for name, value in sampling.items()}, "m.gguf")


def test_a_gguf_file_names_its_settings_in_its_own_way() -> None:
    told = keys(temp=float(np.float32(0.6)), top_k=20, penalty_repeat=1.5, min_p=0.0, mirostat=0)
    expected = {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.5, "min_p": 0.0}
    assert gguf_generation(told) == expected


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        ({"xtc_probability": 0.5}, "general.sampling.xtc_probability"),
        ({"mirostat": 2}, "general.sampling.mirostat"),
        ({"something_new": 1}, "general.sampling.something_new"),
        ({"temp": float("nan")}, "temperature"),
        ({"top_p": 2.0}, "top_p"),
    ],
    ids=str,
)
def test_settings_of_a_gguf_file_are_refused_by_name(
    sampling: dict[str, float], named: str
) -> None:
    with pytest.raises(ConfigError, match=rf"m\.gguf.*`{named}`"):
        gguf_generation(keys(**sampling))

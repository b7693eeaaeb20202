"""Before a model is converted, its tokenizer and templates are made what a coordinator makes of them: what cannot be is named
by its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.processes.prepare_main import try_texts
from engine.checkpoints.source import open_checkpoint
from protocol.errors import ConfigError
from tests.unit.coordinator.edge.text.chat_models import TOKENIZERS
from tests.unit.engine.checkpoints.test_bad_files import write_model

SPELLED = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    return tmp_path / "model"


def said_of(model: Path, *, is_guarded: bool = True) -> str:
    with pytest.raises(ConfigError) as caught:
        try_texts(open_checkpoint(model), str(model), is_guarded=is_guarded)
    return str(caught.value)


@pytest.mark.parametrize(
    "source", ["{{", "{% for %}", "{{ 'a' * 10**9 }}", "{{ " + "-" * 99_999 + "1 }}"]
)
def test_a_template_is_named_by_its_file(model: Path, source: str) -> None:
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": source}))
    assert said_of(model).startswith(f"{model}/tokenizer_config.json: ")
    (model / "chat_template.jinja").write_text(source)
    assert said_of(model).startswith(f"{model}/chat_template.jinja: ")


def test_a_further_template_is_named_by_its_own(model: Path) -> None:
    (model / "chat_template.jinja").write_text(SPELLED)
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "rag.jinja").write_text("{{")
    assert said_of(model).startswith(f"{model}/additional_chat_templates/rag.jinja: ")


def test_a_tokenizer_that_the_library_reads_and_nobody_else_is_named(model: Path) -> None:
    fields = json.loads(TOKENIZERS["sentencepiece"]().to_str())
    fields["added_tokens"] = {}
    (model / "tokenizer.json").write_text(json.dumps(fields | {"normalizer": []}))
    assert "tokenizer.json" in said_of(model)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_half_a_character_is_named_by_its_file(model: Path, name: str) -> None:
    (model / name).write_text('{"eos_token": "\\ud800"}')
    assert said_of(model) == f"{model}/{name} has U+D800 in a text, which is no character"
    (model / name).write_text('{"pad_token": "\\ud83d\\ude42"}')
    try_texts(open_checkpoint(model), str(model), is_guarded=True)


def test_a_tokenizer_that_cannot_be_guarded_is_refused_unless_nobody_asks_for_it(
    model: Path,
) -> None:
    fields = json.loads(TOKENIZERS["unigram"]().to_str())
    fields["added_tokens"][4]["id"] = 5
    (model / "tokenizer.json").write_text(json.dumps(fields))
    (model / "chat_template.jinja").write_text(SPELLED)
    assert "--allow-special-tokens-in-content" in said_of(model)
    try_texts(open_checkpoint(model), str(model), is_guarded=False)

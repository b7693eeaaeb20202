"""What stands beside tokenizer.json is read as transformers reads it; tokens that only such a file knows are refused by field:
transformers adds them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from coordinator.edge.http.limits import EdgeLimits
from coordinator.edge.text.chat_template import ChatTemplate
from coordinator.edge.text.tokenizer import TextTokenizer
from engine.checkpoints.source import open_checkpoint
from protocol.clock import SystemClock
from protocol.errors import ConfigError
from tests.unit.coordinator.edge.text.chat_models import TOKENIZERS
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


BOS, EOS = {"bos_token": "<s>"}, {"eos_token": "</s>"}
OLDER = "special_tokens_map.json"
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "a first token": (BOS | EOS | {"add_bos_token": True, "add_eos_token": False}, None),
    "a last token": (BOS | EOS | {"add_eos_token": True}, None),
    "both": ({"add_bos_token": True, "add_eos_token": True, **BOS, **EOS}, None),
    "none": (BOS | {"add_bos_token": False}, None),
    "null": (BOS | {"add_bos_token": None}, None),
    "no first token to add": ({"add_bos_token": True}, None),
    "only words": (BOS | {"unk_token": "e", "additional_special_tokens": ["r"]}, None),
    "an older file": ({"add_bos_token": True}, BOS),
    "an older file of objects": ({"add_bos_token": True}, {"bos_token": {"content": "</s>"}}),
    "an older file that comes first": (BOS | {"add_bos_token": True}, {"bos_token": "</s>"}),
    "an older file that does not count": (
        BOS | {"add_bos_token": True, "added_tokens_decoder": {}},
        {"bos_token": "</s>", "additional_special_tokens": ["hello"]},
    ),
}
"""tokenizer_config.json, and the file before it."""
SAID = ("hello there", "<s>hello</s> ahellob", "", "東京 there</s>")


def own_frame(library: Any) -> Any:
    """As of a model whose tokenizer.json adds tokens by itself."""
    names = {"<s>": library.token_to_id("<s>"), "</s>": library.token_to_id("</s>")}
    library.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=list(names.items())
    )
    return library


@pytest.mark.parametrize("frame", [None, own_frame])
@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "unigram"])
@pytest.mark.parametrize("what", CHANGES)
def test_a_text_has_the_ids_of_transformers(
    tmp_path: Path, what: str, kind: str, frame: Any
) -> None:
    settings, older = CHANGES[what]
    model, library = write(tmp_path, settings), TOKENIZERS[kind]()
    library = frame(library) if frame else library
    (model / "tokenizer.json").write_text(library.to_str())
    if older is not None:
        (model / OLDER).write_text(json.dumps(older))
    peer = transformers.PreTrainedTokenizerFast.from_pretrained(model)
    checkpoint = open_checkpoint(model)
    ours = TextTokenizer(checkpoint.files["tokenizer.json"])
    for text in SAID:
        for special in (True, False):
            expected = peer.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special) == expected, text
    for ids in (peer.encode(text) for text in SAID):
        assert ours.decode(ids, skip_special_tokens=True) == peer.decode(
            ids, skip_special_tokens=True
        )
    told = json.loads(checkpoint.files["tokenizer_config.json"])
    assert (told.get("bos_token") is None) == (peer.bos_token is None)


def test_what_changes_nothing_leaves_the_tokenizer_as_it_is(tmp_path: Path) -> None:
    model = write(tmp_path, BOS | {"add_bos_token": True, **EOS})
    serialized = own_frame(TOKENIZERS["byte-level"]()).to_str()
    (model / "tokenizer.json").write_text(serialized)
    assert open_checkpoint(model).files["tokenizer.json"] == serialized.encode()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (OLDER, {"bos_token": "<|new|>"}, "`bos_token` names '<|new|>'"),
        ("added_tokens.json", {"<|new|>": 32}, "names '<|new|>'"),
    ],
)
def test_what_an_older_file_adds_is_named(
    tmp_path: Path, name: str, content: Any, told: str
) -> None:
    model = write(tmp_path, {})
    (model / name).write_text(json.dumps(content))
    with pytest.raises(ConfigError) as caught:
        open_checkpoint(model)
    assert name in str(caught.value)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "older"),
    [
        (BOS, None),
        ({}, BOS),
        ({"image_token": "hello"}, BOS | {"mask_token": "there"}),
        ({"extra_special_tokens": {"image_token": "hello"}}, {"eos_token": {"content": "</s>"}}),
    ],
)
def test_a_template_sees_the_special_tokens_of_transformers(
    tmp_path: Path, settings: Any, older: Any
) -> None:
    model = write(tmp_path, settings)
    (model / "tokenizer.json").write_text(TOKENIZERS["byte-level"]().to_str())
    if older is not None:
        (model / OLDER).write_text(json.dumps(older))
    names = ("bos_token", "eos_token", "mask_token", "image_token")
    shown = "".join(f"[{{{{ {name} }}}}]" for name in names)
    (model / "chat_template.jinja").write_text(shown + "{{ messages[0].content }}")
    peer = transformers.PreTrainedTokenizerFast.from_pretrained(model)
    template = ChatTemplate.from_files(open_checkpoint(model).files)
    messages = [{"role": "user", "content": "hello"}]
    expected = peer.apply_chat_template(messages, tokenize=False)
    assert "s>" in expected
    rendered = template.render({"messages": messages}, clock=SystemClock(), limits=EdgeLimits())
    assert rendered == expected
    given = set(settings) | set(older or {})
    assert not template.variables() & given


def test_every_file_adds_its_end_and_none_takes_one_away(tmp_path: Path) -> None:
    for settings, older, ends in (
        ({"eos_token": "w3"}, {"eos_token": "w4"}, (2, 3, 4)),
        ({"eos_token": "w3", "added_tokens_decoder": {}}, {"eos_token": "w4"}, (2, 3, 4)),
        ({"eos_token": "w3"}, {"eos_token": None}, (2, 3)),
        ({}, {"eos_token": {"content": "w4"}}, (2, 4)),
    ):
        model = write(tmp_path, settings)
        (model / OLDER).write_text(json.dumps(older))
        assert open_checkpoint(model).config.eos_token_ids == ends

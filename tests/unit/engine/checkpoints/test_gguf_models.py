"""GGUF files as people have them: tokenizers of both kinds, ends of turns, templates, several parts, refused keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from deploy.host.model_source import find_source
from engine.checkpoints.fields import Fields
from engine.checkpoints.gguf_file import GgufFile
from engine.checkpoints.gguf_pre_tokenizers import PRE_TOKENIZERS
from engine.checkpoints.gguf_tokenizer import GgufVocabulary, build_tokenizer
from engine.checkpoints.prepare import prepare
from engine.checkpoints.prepared import find_prepared
from engine.checkpoints.source import open_checkpoint
from protocol.errors import ConfigError
from protocol.model_config import RopeScaling
from tests.unit.engine.checkpoints.test_checkpoints import write_gguf

TEXTS = [
    "Hello, world! It's I'LL we've 12345 3.14159  indented\n\n\ttab",
    "camelCase UPPERlower naïve café 東京 한국어 🙂🚀 x=1;\r\n  y",
    "  two  spaces   \n \n end ",
    "don't DON'T a_b-c(d)[e]{f} http://a.b/c?d=e#f ½ ²³ ٣٤",
]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
ORIGINALS = {"llama-bpe": LLAMA3, "tekken": TEKKEN, "qwen2": QWEN2, "deepseek-r1-qwen": QWEN2}
"""The rules of these models' own tokenizer.json files."""


def trained(rule: str) -> Any:
    """A tokenizer that Hugging Face's library trained with that rule."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(rule), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=["<s>", "<|im_end|>"]
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def metadata(**own: Any) -> Fields:
    return Fields({f"tokenizer.ggml.{key}": value for key, value in own.items()}, "file")


def of_trained(tokenizer: Any, pre: Any, **more: Any) -> GgufVocabulary:
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    kinds = [3 if token in ("<s>", "<|im_end|>") else 1 for token in tokens]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    fields = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": kinds, "merges": merges}
    return GgufVocabulary(metadata(**(fields | more)))


def built(vocabulary: GgufVocabulary) -> Any:
    return Tokenizer.from_str(build_tokenizer(vocabulary).decode())


@pytest.mark.parametrize("pre", ORIGINALS)
def test_ids_are_those_of_the_library_with_the_models_own_rule(pre: str) -> None:
    original = trained(ORIGINALS[pre])
    ours = built(of_trained(original, pre))
    for text in TEXTS:
        expected = original.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False).ids == expected
        assert ours.decode(expected) == text
    assert ours.encode("a<|im_end|>", add_special_tokens=False).tokens[-1] == "<|im_end|>"


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_rule_keeps_every_character(pre: str) -> None:
    tokenizer = built(of_trained(trained(LLAMA3), pre))
    for text in TEXTS:
        composed = normalizers.NFC().normalize_str(text) if pre == "qwen2" else text
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == composed


def test_bos_and_eos_are_added_where_the_file_or_the_rule_says_so() -> None:
    original = trained(LLAMA3)
    ids = {"bos_token_id": 0, "eos_token_id": 1}

    def tokens(pre: str, **more: Any) -> Any:
        return built(of_trained(original, pre, **ids, **more)).encode("a").tokens

    assert tokens("llama-bpe") == ["<s>", "a"]
    assert tokens("qwen2") == ["a"]
    assert tokens("llama-bpe", add_bos_token=False) == ["a"]
    assert tokens("qwen2", add_bos_token=True, add_eos_token=True) == ["<s>", "a", "<|im_end|>"]


def test_a_token_that_is_added_must_be_named() -> None:
    with pytest.raises(ConfigError, match="`bos_token_id` is missing"):
        built(of_trained(trained(LLAMA3), "qwen2", add_bos_token=True))
    with pytest.raises(ConfigError, match="`eos_token_id` is missing"):
        built(of_trained(trained(LLAMA3), "qwen2", add_eos_token=True))
    none = of_trained(trained(LLAMA3), "qwen2", add_bos_token=True, bos_token_id=2**32 - 1)
    assert built(none).encode("a").tokens == ["a"]


def test_sentence_piece_has_ids_of_its_own_where_the_file_names_none() -> None:
    """As llama.cpp has them."""
    gone: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "unknown_token_id"))
    vocabulary = piece_vocabulary(add_eos_token=True, **gone)
    assert built(vocabulary).encode("ab").tokens == ["<s>", "▁ab", "</s>"]
    assert vocabulary.ends() == (2,)
    assert vocabulary.settings()["bos_token"] == "<s>"
    assert built(piece_vocabulary(bos_token_id=2**32 - 1)).encode("ab").tokens == ["▁ab"]


def piece_vocabulary(**more: Any) -> GgufVocabulary:
    words = ["▁", "a", "b", "▁a", "ab", "▁ab", "c", "bc"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(words)]
    scores = [0.0] * 259 + [-float(index) for index in range(len(words))]
    fields = {"model": "llama", "tokens": tokens, "token_type": kinds, "scores": scores}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return GgufVocabulary(metadata(**(fields | ids | more)))


def test_sentence_piece_merges_the_best_score_first_and_falls_to_bytes() -> None:
    tokenizer = built(piece_vocabulary())
    assert tokenizer.encode("ab").tokens == ["<s>", "▁ab"]
    assert tokenizer.encode("abc").tokens == ["<s>", "▁ab", "c"]  # ab before bc
    assert tokenizer.encode("é").tokens == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.encode("a</s>b").tokens == ["<s>", "▁a", "</s>", "▁", "b"]
    assert tokenizer.decode(tokenizer.encode("ab é  c").ids) == "ab é  c"
    plain = built(piece_vocabulary(add_space_prefix=False))
    assert plain.encode("ab", add_special_tokens=False).tokens == ["ab"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "bert"}, "model"),
        ({"pre": "viking"}, "pre"),
        ({"pre": 5}, "pre"),
        ({"merges": []}, "merges"),
        ({"merges": None}, "merges"),
        ({"merges": ["nospace"]}, "merges"),
        ({"merges": ["zz yy"]}, "merges"),
        ({"merges": [5]}, "merges"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "tokens"),
        ({"tokens": []}, "tokens"),
        ({"token_type": [1]}, "token_type"),
        ({"token_type": "x"}, "token_type"),
        ({"bos_token_id": 10**6}, "bos_token_id"),
        ({"add_bos_token": 1}, "add_bos_token"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
        ({"add_sep_token": True}, "add_sep_token"),
    ],
    ids=str,
)
def test_what_a_vocabulary_lacks_is_named(changes: dict[str, Any], named: str) -> None:
    def build() -> None:
        vocabulary = of_trained(trained(LLAMA3), **({"pre": "llama-bpe"} | changes))
        vocabulary.special("bos")
        build_tokenizer(vocabulary)

    with pytest.raises(ConfigError, match=f"`{named}`"):
        build()


def test_tokens_without_kinds_are_named() -> None:
    """Which of them are control tokens nobody could tell."""
    with pytest.raises(ConfigError, match="`token_type` is missing"):
        built(piece_vocabulary(token_type=None))


def test_sentence_piece_without_scores_is_named() -> None:
    with pytest.raises(ConfigError, match="`scores`"):
        built(piece_vocabulary(scores=None))


def test_known_ends_of_turns_are_found() -> None:
    tokens = ["a", "<|im_end|>", "<|endoftext|>", "</s>", "<|eot_id|>"]
    vocabulary = GgufVocabulary(metadata(tokens=tokens, token_type=[1, 3, 3, 1, 4], eos_token_id=2))
    assert vocabulary.ends() == (2, 1, 4)  # </s> is a common word here
    assert GgufVocabulary(metadata(tokens=["a"], eot_token_id=0)).ends() == (0,)
    assert GgufVocabulary(metadata(tokens=["a"])).ends() == ()


def rewritten(path: Path, edit: Any) -> Path:
    """The small model with `edit(writer)` applied to its keys before they are written."""
    write_gguf(path, edit)
    return path


def test_no_end_of_sequence_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    assert open_checkpoint(path).warnings == []
    raw = path.read_bytes().replace(b"ggml.eos_token_id", b"ggml.xxx_token_id")
    path.write_bytes(raw.replace(b"<|end|>", b"<|abc|>"))
    (warning,) = open_checkpoint(path).warnings
    assert "eos_token_id" in warning


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.attention.sliding_window", 16),
        ("llama.expert_count", 8),
        ("llama.attention.scale", 0.5),
        ("llama.logit_scale", 2.0),
        ("llama.rope.dimension_count", 8),
        ("llama.attention.value_length", 8),
        ("llama.rope.scaling.type", "longrope"),
        ("llama.something_new", 1),
    ],
)
def test_a_key_that_would_change_the_answers_is_named(tmp_path: Path, key: str, value: Any) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        add: dict[type, Any] = {
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        add[type(value)](key, value)

    with pytest.raises(ConfigError, match=key.partition(".")[2]):
        GgufFile(rewritten(tmp_path / "tiny.gguf", edit)).config()


def test_a_factor_without_a_scaling_is_none_where_the_file_says_so(tmp_path: Path) -> None:
    """As in llama.cpp; older files have the factor alone, and mean it."""

    def factor(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_factor(4.0)

    def none(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        factor(writer)

    found = GgufFile(rewritten(tmp_path / "old.gguf", factor)).config().rope_scaling
    assert (found.kind, found.factor) == ("linear", 4.0)
    assert GgufFile(rewritten(tmp_path / "none.gguf", none)).config().rope_scaling == RopeScaling()


def test_templates_by_name(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        templates = [
            {"name": "default", "template": "plain"},
            {"name": "tool_use", "template": "tools"},
        ]
        writer.add_chat_template(templates)

    files = open_checkpoint(rewritten(tmp_path / "tiny.gguf", edit)).files
    assert "chat_template.jinja" not in files
    found = json.loads(files["tokenizer_config.json"])["chat_template"]
    assert {one["name"]: one["template"] for one in found} == {
        "default": "plain",
        "tool_use": "tools",
    }


def split(tmp_path: Path) -> list[Path]:
    """The small model in parts, by gguf's own writer."""
    write_gguf(tmp_path / "whole.gguf", split_tensors=5)
    parts = sorted(tmp_path.glob("whole-*.gguf"))
    assert len(parts) > 1
    return parts


def test_a_model_in_parts_is_the_model(tmp_path: Path) -> None:
    parts = split(tmp_path)
    (tmp_path / "one").mkdir()
    write_gguf(tmp_path / "one" / "whole.gguf")
    whole = open_checkpoint(tmp_path / "one" / "whole.gguf")
    for part in (parts[0], parts[-1]):
        found = open_checkpoint(part)
        assert found.config == whole.config
        assert found.files == whole.files
        assert found.tensors.keys() == whole.tensors.keys()
        for name, stored in found.tensors.items():
            assert (stored.read()[1] == whole.tensors[name].read()[1]).all()  # type: ignore[union-attr]


def test_links_to_nameless_files_are_a_model(tmp_path: Path) -> None:
    """As a hub's cache keeps models: what is linked to is named by its hash."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    write_gguf(blobs / "1")
    (snapshot / "whole.gguf").symlink_to(blobs / "1")
    for place, part in enumerate(split(tmp_path), start=2):
        (snapshot / part.name).symlink_to(part.rename(blobs / str(place)))
    for name in ("whole.gguf", "whole-00002-of-00003.gguf"):
        source = find_source(str(snapshot / name))
        assert source.name == Path(name).stem
        prepared = prepare(Path(source.location), tmp_path / "cache", "float32", lambda *_: None)
        assert find_prepared(snapshot / name, tmp_path / "cache", "float32") == prepared
    (snapshot / "whole.gguf").unlink()
    (snapshot / "whole.gguf").symlink_to(blobs / "2")
    assert find_prepared(snapshot / "whole.gguf", tmp_path / "cache", "float32") is None


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    parts = split(tmp_path)
    parts[1].unlink()
    with pytest.raises(ConfigError, match=parts[1].name):
        open_checkpoint(parts[0])


def test_a_part_by_another_name_is_refused(tmp_path: Path) -> None:
    parts = split(tmp_path)
    with pytest.raises(ConfigError, match="parts"):
        open_checkpoint(parts[0].rename(tmp_path / "renamed.gguf"))

"""A model's source, of either kind, as a checkpoint. Owns what a GGUF file's keys become beside its weights; torch-free."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec

from engine.checkpoints.checkpoint import (
    GENERATION,
    TOKENIZER,
    Checkpoint,
    load_tokenizer,
    settle_vocabulary,
    write_settings,
)
from engine.checkpoints.fields import shown
from engine.checkpoints.generation import gguf_generation
from engine.checkpoints.gguf_file import GgufFile, gguf_name
from engine.checkpoints.gguf_tokenizer import GgufVocabulary, build_tokenizer
from engine.checkpoints.hugging_face import read_directory
from engine.checkpoints.stored_tensor import check_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from engine.checkpoints.fields import Fields
    from engine.checkpoints.stored_tensor import StoredTensor

_TEMPLATE = "tokenizer.chat_template"


def open_checkpoint(source: Path, *, with_weights: bool = True) -> Checkpoint:
    """The model in `source`, a directory or a GGUF file, wholly checked; ConfigError names what cannot be served."""
    if source.is_dir():
        return read_directory(source, with_weights=with_weights)
    return _read_gguf(source, with_weights=with_weights)


def _read_gguf(source: Path, *, with_weights: bool) -> Checkpoint:
    file = GgufFile(source)
    config = file.config()
    tensors: dict[str, StoredTensor] = {}
    if with_weights:
        tensors = file.tensors()
        check_tensors(config, tensors, str(source), gguf_name)
    vocabulary = GgufVocabulary(file.fields)
    serialized = build_tokenizer(vocabulary)
    tokenizer = load_tokenizer(serialized, vocabulary.fields.where)
    config = msgspec.structs.replace(config, bos_token_id=vocabulary.special("bos"))
    checkpoint = Checkpoint(config, tensors)
    settle_vocabulary(checkpoint, tokenizer, vocabulary.ends())
    generation = gguf_generation(file.fields) | {
        "eos_token_id": list(checkpoint.config.eos_token_ids),
        "bos_token_id": config.bos_token_id,
    }
    checkpoint.files[TOKENIZER] = serialized
    checkpoint.files[GENERATION] = json.dumps(generation, indent=1).encode()
    write_settings(checkpoint, vocabulary.settings(), _templates(file.fields))
    return checkpoint


def _templates(fields: Fields) -> dict[str, str]:
    """`tokenizer.chat_template`, and further ones by name after it."""
    found = {"default": fields.text(_TEMPLATE)} if fields.has(_TEMPLATE) else {}
    names = fields.values.get("tokenizer.chat_templates") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        fields.refuse("tokenizer.chat_templates", f"must hold names, not {shown(names)}")
    return found | {name: fields.text(f"{_TEMPLATE}.{name}") for name in names if name != "default"}

"""Reading a Hugging Face model directory. Owns which of its files count, in transformers' order; torch-free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine.checkpoints.checkpoint import (
    GENERATION,
    SETTINGS,
    TEMPLATE,
    TOKENIZER,
    Checkpoint,
    check_settings,
    load_tokenizer,
    named_templates,
    settle_vocabulary,
    write_settings,
)
from engine.checkpoints.fields import Fields, is_there, read_bytes, read_object, shown
from engine.checkpoints.generation import GENERATION_FIELDS, check_generation
from engine.checkpoints.hugging_face_config import DEFAULT_EOS, WEIGHT_FILES, parse_config
from engine.checkpoints.safetensors_file import read_safetensors
from engine.checkpoints.stored_tensor import check_tensors, settle_head
from engine.checkpoints.tokenizer_settings import LISTED, settled, token_text, with_older
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from engine.checkpoints.stored_tensor import StoredTensor

_MAX_CONFIG_BYTES = 1 << 24
_MAX_TOKENIZER_BYTES, _MAX_INDEX_BYTES = 1 << 27, 1 << 26
_MAX_NAME_BYTES = 255
"""As file systems have it."""
_SINGLE, _INDEX = WEIGHT_FILES
EXTRA_TEMPLATES = "additional_chat_templates"
OLDER_SETTINGS, OLDER_TOKENS = "special_tokens_map.json", "added_tokens.json"


def read_directory(directory: Path, *, with_weights: bool = True) -> Checkpoint:
    """The model in `directory`; ConfigError names the file and the field that cannot be served."""
    path = directory / "config.json"
    raw = read_object(path, _MAX_CONFIG_BYTES)
    config = parse_config(raw, str(path))
    tensors: dict[str, StoredTensor] = {}
    if with_weights:
        tensors = read_tensors(directory)
        config = msgspec.structs.replace(config, tie_word_embeddings=settle_head(config, tensors))
        check_tensors(config, tensors, str(directory))
    checkpoint = Checkpoint(config, tensors)
    _read_texts(checkpoint, directory, raw)
    return checkpoint


def _read_texts(checkpoint: Checkpoint, directory: Path, raw_config: dict[str, Any]) -> None:
    """Tokenizer, templates, generation settings; and with them the ends of sequence."""
    settings = _optional(directory / SETTINGS)
    generation, where = _generation(directory, raw_config)
    older = _optional(directory / OLDER_SETTINGS)
    path = directory / TOKENIZER
    if not is_there(path):
        raise ConfigError(f"{directory} has no {TOKENIZER}; save a fast tokenizer there first")
    raw = read_bytes(path, _MAX_TOKENIZER_BYTES)
    tokenizer = load_tokenizer(raw, str(path))
    check_settings(settings, tokenizer, str(directory / SETTINGS))
    if LISTED not in settings:
        check_settings(older, tokenizer, str(directory / OLDER_SETTINGS))
        _check_added(directory, tokenizer)
    told = (token_text(file.get("eos_token")) for file in (settings, older))
    settings = with_older(settings, older)
    checkpoint.files[TOKENIZER] = settled(raw, tokenizer, settings)
    ends = checkpoint.config.eos_token_ids + check_generation(generation, where)
    own = (tokenizer.token_to_id(text) for text in told if text is not None)
    ends = (*ends, *(token_id for token_id in own if token_id is not None))
    if not ends and "eos_token_id" not in raw_config | generation:
        ends = _default_end(checkpoint)
    settle_vocabulary(checkpoint, tokenizer, ends)
    generation["eos_token_id"] = list(checkpoint.config.eos_token_ids)
    checkpoint.files[GENERATION] = json.dumps(generation, indent=1).encode()
    write_settings(checkpoint, settings, _templates(checkpoint, directory, settings))


def _check_added(directory: Path, tokenizer: Tokenizer) -> None:
    """ConfigError for a token of an added_tokens.json that tokenizer.json lacks: transformers would add it."""
    path = directory / OLDER_TOKENS
    for text in _optional(path):
        if tokenizer.token_to_id(text) is None:
            told = f"names {shown(text)}, which {TOKENIZER} beside it does not have"
            raise ConfigError(f"{path} {told}; save the tokenizer anew")


def _generation(directory: Path, raw_config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Its settings and the file they are in: without a file of their own, as in transformers, config.json."""
    path = directory / GENERATION
    if is_there(path):
        return read_object(path, _MAX_CONFIG_BYTES), str(path)
    found = {name: value for name, value in raw_config.items() if name in GENERATION_FIELDS}
    return found, str(directory / "config.json")


def _default_end(checkpoint: Checkpoint) -> tuple[int, ...]:
    default = DEFAULT_EOS.get(checkpoint.config.family)
    if default is None:
        return ()
    checkpoint.warnings.append(
        f"the model names no end of sequence (eos_token_id); {default}, the default of its architecture, is taken"
    )
    return (default,)


def _templates(checkpoint: Checkpoint, directory: Path, settings: dict[str, Any]) -> dict[str, str]:
    """By name. A file comes before what the settings say, as in transformers; further files have names of their own."""
    found = named_templates(settings.get("chat_template"), str(directory / SETTINGS))
    places = dict.fromkeys(found, str(directory / SETTINGS))
    own = directory / TEMPLATE
    if is_there(own):
        found, places = {"default": _text(own)}, {"default": str(own)}
    for path in sorted((directory / EXTRA_TEMPLATES).glob("*.jinja")):
        found[path.stem], places[path.stem] = _text(path), str(path)
    checkpoint.template_places = places
    return found


def _text(path: Path) -> str:
    try:
        return read_bytes(path, _MAX_CONFIG_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None


def _optional(path: Path) -> dict[str, Any]:
    return read_object(path, _MAX_CONFIG_BYTES) if is_there(path) else {}


def read_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint: of the one file, else of all files that the index names."""
    if is_there(directory / _SINGLE):
        return read_safetensors(directory / _SINGLE)
    path = directory / _INDEX
    if not is_there(path):
        raise ConfigError(f"{directory} has no {_SINGLE} and no {_INDEX}; convert it first")
    places = _weight_map(path)
    found: dict[str, StoredTensor] = {}
    holders: dict[str, str] = {}
    for name in sorted(set(places.values())):
        for tensor, stored in read_safetensors(directory / name).items():
            if tensor in found:
                raise ConfigError(f"{directory}: {tensor} is in {holders[tensor]} and in {name}")
            found[tensor], holders[tensor] = stored, name
    for tensor, name in places.items():
        if holders.get(tensor) != name:
            raise ConfigError(
                f"{path}: `weight_map` puts {shown(tensor)} into {name}, where it is not"
            )
    return found


def _weight_map(path: Path) -> dict[str, str]:
    index = Fields(read_object(path, _MAX_INDEX_BYTES), str(path))
    places = index.values.get("weight_map")
    if not isinstance(places, dict) or not places:
        index.refuse("weight_map", f"must be an object of file names, not {shown(places)}")
    for name in places.values():
        if not isinstance(name, str) or not _is_file_name(name):
            index.refuse("weight_map", f"must name files beside it, not {shown(name)}")
    return places


def _is_file_name(name: str) -> bool:
    is_short = len(name.encode()) <= _MAX_NAME_BYTES
    return is_short and Path(name).name == name and "\0" not in name

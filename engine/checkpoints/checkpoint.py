"""A model as its author published it, read and checked but not converted. Owns what both kinds of source have in common:
ends of sequence, the comparison of tokenizer and embedding, the small files beside the weights. Torch-free.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from tokenizers import Tokenizer

from engine.checkpoints.fields import Fields, reason, shown
from engine.checkpoints.tokenizer_settings import token_text
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from engine.checkpoints.stored_tensor import StoredTensor
    from protocol.model_config import ModelConfig

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"


@dataclass(slots=True)
class Checkpoint:
    """What a source holds. `tensors` have Hugging Face names, and are empty where nobody asked for weights; `files` go
    into the prepared directory; `warnings` are for whoever starts the server; `template_places` says in which file a
    chat template was."""

    config: ModelConfig
    tensors: Mapping[str, StoredTensor]
    files: dict[str, bytes] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    template_places: dict[str, str] = field(default_factory=dict)


class _Described(msgspec.Struct):
    """What is asked of a tokenizer.json beside the library."""

    decoder: dict[str, Any] | None = None


def load_tokenizer(raw: bytes, where: str) -> Tokenizer:
    """The tokenizer that a tokenizer.json describes; ConfigError when the library refuses it, or panics, and for a
    decoder whose text cannot be told while tokens come."""
    try:
        tokenizer = Tokenizer.from_str(raw.decode("utf-8"))
        decoder = msgspec.json.decode(raw, type=_Described).decoder
    except BaseException as error:
        panicked = type(error).__name__ == "PanicException"  # of the Rust side: not an Exception
        if not panicked and not isinstance(error, Exception):
            raise
        raise ConfigError(f"{where} is not a usable tokenizer: {reason(error)}") from None
    _check_decoder(decoder, where)
    return tokenizer


def _check_decoder(decoder: dict[str, Any] | None, where: str) -> None:
    """A `Strip` at the end panics in the library where there is nothing to strip. What replaces more than a character in
    the text of several tokens changes what was told already."""
    is_fused = False
    for step in _steps_of(decoder or {}):
        told = f"{where}: `decoder` of type {step.get('type')!r} is not supported"
        if step.get("type") == "Strip" and step.get("stop"):
            raise ConfigError(f"{told} with `stop` other than 0")
        is_fused = is_fused or step.get("type") == "Fuse"
        pattern = (step.get("pattern") or {}).get("String", "")
        if step.get("type") == "Replace" and is_fused and len(pattern) != 1:
            raise ConfigError(f"{told} behind `Fuse`, unless its `pattern` is one character")


def _steps_of(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if decoder.get("type") != "Sequence":
        yield decoder
    for step in decoder.get("decoders") or ():
        yield from _steps_of(step)


def check_settings(settings: Mapping[str, Any], tokenizer: Tokenizer, where: str) -> None:
    """ConfigError for settings by which transformers reads a text otherwise than tokenizer.json alone does: tokens that it
    would add, and special tokens that it would take for text. `where` is the settings' file, beside tokenizer.json."""
    if settings.get("split_special_tokens"):
        raise ConfigError(f"{where}: `split_special_tokens` is supported as false only")
    for name, text, token_id in _named_tokens(settings):
        own = tokenizer.token_to_id(text)
        if own is None or token_id not in (None, str(own)):
            told = f"{shown(text)}, which {TOKENIZER} beside it does not have"
            if own is not None:
                told = f"{shown(text)} {shown(token_id)}, which is {own} in {TOKENIZER} beside it"
            raise ConfigError(f"{where}: `{name}` names {told}; save the tokenizer anew")


def _named_tokens(settings: Mapping[str, Any]) -> Iterator[tuple[str, str, str | None]]:
    """Field, text, and id where one is told, of each token that prompts may need."""
    for name in ("bos_token", "eos_token"):
        if (text := token_text(settings.get(name))) is not None:
            yield name, text, None
    name = "added_tokens_decoder"
    entries = settings.get(name)
    for token_id, entry in entries.items() if isinstance(entries, dict) else ():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str):
            yield name, entry["content"], token_id
    for name in ("additional_special_tokens", "extra_special_tokens"):
        listed = settings.get(name)
        told = list(listed.values()) if isinstance(listed, dict) else listed
        for entry in told if isinstance(told, list) else ():
            text = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(text, str):
                yield name, text, None


def settle_vocabulary(checkpoint: Checkpoint, tokenizer: Tokenizer, ends: tuple[int, ...]) -> None:
    """Make `ends` the model's ends of sequence, as far as the embedding has them, and warn of what cannot work."""
    size = checkpoint.config.vocab_size
    reachable = tuple(token_id for token_id in dict.fromkeys(ends) if token_id < size)
    checkpoint.config = msgspec.structs.replace(checkpoint.config, eos_token_ids=reachable)
    beyond = [token_id for token_id in ends if token_id >= size]
    if beyond:
        checkpoint.warnings.append(
            f"end of sequence {beyond[0]} is not below the embedding's {size} rows, so no text will end with it"
        )
    if not reachable:
        checkpoint.warnings.append(
            "the model names no end of sequence (eos_token_id), so answers end only at max_tokens or stop"
        )
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    lost = sorted((token_id, token) for token, token_id in vocabulary.items() if token_id >= size)
    if lost:
        named = ", ".join(f"{shown(token)} ({token_id})" for token_id, token in lost[:3])
        checkpoint.warnings.append(
            f"the embedding has {size} rows, but the tokenizer has {len(lost)} tokens beyond: {named}"
            f"{', …' if len(lost) > 3 else ''}; prompts that contain them are refused"
        )


def write_settings(
    checkpoint: Checkpoint, settings: dict[str, Any], templates: Mapping[str, str]
) -> None:
    """tokenizer_config.json and the chat template: one alone as a file of its own, several as a list of named ones."""
    settings = {key: value for key, value in settings.items() if key != "chat_template"}
    if set(templates) == {"default"}:
        checkpoint.files[TEMPLATE] = templates["default"].encode("utf-8", "surrogatepass")
    elif templates:
        settings["chat_template"] = [
            {"name": name, "template": text} for name, text in templates.items()
        ]
    checkpoint.files[SETTINGS] = json.dumps(settings, indent=1).encode()


def named_templates(value: object, where: str) -> dict[str, str]:
    """`chat_template` of tokenizer_config.json: nothing, one text, or a list of named ones."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    found: dict[str, str] = {}
    for entry in value if isinstance(value, list) else [None]:
        fields = Fields(entry if isinstance(entry, dict) else {}, f"{where}: chat_template")
        found[fields.text("name")] = fields.text("template")
    return found

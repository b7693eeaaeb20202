"""Building a Hugging Face tokenizer from GGUF metadata. Owns the pre-tokenizer table; must not know tensors.

Byte-level BPE only (`tokenizer.ggml.model` gpt2). `tokenizer.ggml.pre` names the split rule; the
rules are those of the models' own tokenizer.json files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import BPE

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from engine.checkpoints.gguf_file import GgufFile

_CONTROL, _USER_DEFINED = 3, 4
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SUPPORTED_PRE = ("smollm", "default", "gpt-2", "qwen2", "llama-bpe")


def build_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer of `file`; ConfigError names what is not supported."""
    model, pre = file.get("tokenizer.ggml.model"), file.get("tokenizer.ggml.pre", "default")
    if model != "gpt2" or pre not in SUPPORTED_PRE:
        raise ConfigError(
            f"{file.path}: tokenizer {model}/{pre} is not supported; supported: gpt2 with "
            f"{', '.join(SUPPORTED_PRE)}. Use the Hugging Face directory of this model"
        )
    tokens: list[str] = file.get("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in file.get("tokenizer.ggml.merges", [])]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    _add_special_tokens(tokenizer, tokens, file.get("tokenizer.ggml.token_type", []))
    _add_post_processor(tokenizer, file, tokens, pre)
    return tokenizer


def _pre_tokenizer(pre: str) -> Any:
    if pre in ("default", "gpt-2"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "smollm":
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    rule = _SPLIT.format(digits="{1,3}" if pre == "llama-bpe" else "")
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rule), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _add_special_tokens(tokenizer: Tokenizer, tokens: list[str], kinds: list[int]) -> None:
    added = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, kinds, strict=False)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    tokenizer.add_tokens(added)


def _add_post_processor(tokenizer: Tokenizer, file: GgufFile, tokens: list[str], pre: str) -> None:
    bos = file.get("tokenizer.ggml.bos_token_id")
    byte_level = processors.ByteLevel(trim_offsets=False)
    if bos is None or not file.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):
        tokenizer.post_processor = byte_level
        return
    template = processors.TemplateProcessing(
        single=f"{tokens[bos]} $A", pair=f"{tokens[bos]} $A $B", special_tokens=[(tokens[bos], bos)]
    )
    tokenizer.post_processor = processors.Sequence([byte_level, template])


def tokenizer_settings(file: GgufFile) -> dict[str, Any]:
    """A small tokenizer_config.json: the special tokens by name, and whether BOS is added."""
    tokens: list[str] = file.get("tokenizer.ggml.tokens")
    settings: dict[str, Any] = {
        "add_bos_token": bool(file.get("tokenizer.ggml.add_bos_token", False))
    }
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    for key, name in names.items():
        index = file.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None and 0 <= index < len(tokens):
            settings[f"{name}_token"] = tokens[index]
    return settings

"""How few tokens a text can have, told from its bytes alone. Owns for which tokenizers that can be told at all.

A byte-level vocabulary spells every byte of a text, so no token stands for more bytes than the longest one has. That
holds where nothing is dropped on the way: a complete alphabet, pre-tokenizers that only split, no normalizer, and no
added token that swallows the space around it. NFC is the one normalizer that is understood: a text of ASCII is its own
NFC, and any other is at most nine times as long as its NFC (a code point is at most three times as long as its
decomposition, and that at most three times as long as what composes it). Every other tokenizer has no bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NFC_SHRINKS = 9
LOSSLESS = ("ByteLevel", "Digits", "UnicodeScripts")
SPLITTING = ("Split", "Punctuation")
BYTES = 256


@dataclass(frozen=True, slots=True)
class ByteBound:
    """`longest_token_bytes` is 0 where nothing can be told."""

    longest_token_bytes: int = 0
    normalizes: bool = False

    def fewest_tokens(self, text: str) -> int:
        """No encoding of `text` has fewer."""
        if not self.longest_token_bytes:
            return 0
        shrinks = NFC_SHRINKS if self.normalizes and not text.isascii() else 1
        num_bytes = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        return -(-num_bytes // (self.longest_token_bytes * shrinks))


def bound_of(
    description: dict[str, Any], token_sizes: list[int], num_bytes_known: int
) -> ByteBound:
    """The bound for what tokenizer.json describes, whose tokens have these sizes in bytes and spell this many
    single bytes."""
    model = description.get("model") or {}
    normalizer = description.get("normalizer")
    is_exact = (
        model.get("type") == "BPE"
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and num_bytes_known == BYTES
        and normalizer in (None, {"type": "NFC"})
        and _only_splits(description.get("pre_tokenizer"))
        and not any(
            token.get("lstrip") or token.get("rstrip") for token in description["added_tokens"]
        )
    )
    if not is_exact:
        return ByteBound()
    return ByteBound(max(token_sizes), normalizes=normalizer is not None)


def _only_splits(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Whether every byte of a text comes out again, spelled by byte-level characters."""
    parts = _parts(pre_tokenizer)
    return any(part.get("type") == "ByteLevel" for part in parts) and all(
        part.get("type") in LOSSLESS
        or (part.get("type") in SPLITTING and part.get("behavior") != "Removed")
        for part in parts
    )


def _parts(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    if pre_tokenizer is None:
        return []
    if pre_tokenizer.get("type") == "Sequence":
        return [part for inner in pre_tokenizer["pretokenizers"] for part in _parts(inner)]
    return [pre_tokenizer]

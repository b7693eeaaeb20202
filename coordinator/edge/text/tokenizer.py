"""Text to token ids and back, for one model. Owns the `tokenizers` object; knows nothing of requests.

Byte-level vocabularies (GPT-2, Llama 3, Qwen, SmolLM) write each byte of a token as one printable
character, so a token *is* bytes and incremental decoding can be exact. Others (SentencePiece) are
decoded through the library, a window at a time.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
from tokenizers import Tokenizer

from coordinator.edge.text.detokenizer import ByteLevelDetokenizer, WindowDetokenizer
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from coordinator.edge.text.detokenizer import Detokenizer

BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class _TokenizerFile(msgspec.Struct):
    """The one part of tokenizer.json that the library does not tell."""

    decoder: dict[str, Any] | None = None


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the rest for U+0100 upwards, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return table | {chr(0x100 + index): byte for index, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()


def byte_level_bytes(token: str) -> bytes:
    """Bytes of one token of a byte-level vocabulary, by the rule of the library's own decoder."""
    try:
        return bytes([BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:  # an added token such as "<|my token|>" is plain text
        return token.encode()


def _is_byte_level(decoder: dict[str, Any] | None) -> bool:
    if decoder is None:
        return False
    if decoder.get("type") == "Sequence":
        parts = decoder.get("decoders", [])
        return len(parts) == 1 and _is_byte_level(parts[0])
    return decoder.get("type") == "ByteLevel"


class TextTokenizer:
    """One model's tokenizer; safe to use from several threads."""

    def __init__(self, serialized: bytes) -> None:
        self._tokenizer = Tokenizer.from_str(serialized.decode())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        decoder = msgspec.json.decode(serialized, type=_TokenizerFile).decoder
        self.is_byte_level = _is_byte_level(decoder)
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def from_directory(cls, directory: Path) -> TextTokenizer:
        """Read `tokenizer.json`; raises ConfigError when it is missing or damaged."""
        path = directory / "tokenizer.json"
        try:
            return cls(path.read_bytes())
        except Exception as error:
            raise ConfigError(f"cannot read the tokenizer {path}: {error}") from error

    @cached_property
    def size(self) -> int:
        """One more than the highest id that has a token."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` leaves out."""
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids; special tokens written in the text become their own ids, as in HF."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The whole text at once; ids without a token are left out."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_name(self, token_id: int) -> str:
        """The vocabulary's own spelling, or "" for an id without a token."""
        return self._tokenizer.id_to_token(token_id) or ""

    def token_bytes(self, token_id: int) -> bytes:
        """What one token says by itself; specials say their own name."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._make_bytes(self.token_name(token_id))
        return known

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text; U+FFFD where a token is only part of a character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def detokenizer(self, *, skip_special_tokens: bool) -> Detokenizer:
        """A fresh incremental decoder for one sequence."""
        if not self.is_byte_level:
            return WindowDetokenizer(
                lambda ids: self.decode(ids, skip_special_tokens=skip_special_tokens)
            )
        skipped = self.special_ids if skip_special_tokens else frozenset[int]()
        return ByteLevelDetokenizer(self.token_bytes, skipped)

    def _make_bytes(self, token: str) -> bytes:
        if self.is_byte_level:
            return byte_level_bytes(token)
        if fallback := BYTE_FALLBACK.fullmatch(token):
            return bytes.fromhex(fallback[1])
        return token.replace("\u2581", " ").encode()

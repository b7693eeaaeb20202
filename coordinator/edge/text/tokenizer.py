"""Text to token ids and back, for one model. Owns the `tokenizers` object.

Byte-level vocabularies (GPT-2, Llama 3, Qwen, SmolLM) write each byte of a token as one printable
character, so a token *is* bytes and incremental decoding can be exact. Others (SentencePiece) are
decoded through the library, a window at a time. The promise of both: what `push` returned, joined,
then `finish`, is the text of all ids decoded at once; and no replacement character is shown for a
character whose last byte is still to come. Knows nothing of requests.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
from tokenizers import Tokenizer

from coordinator.edge.text.byte_bound import ByteBound, bound_of
from coordinator.edge.text.detokenizer import ByteLevelDetokenizer, WindowDetokenizer
from coordinator.edge.text.guarded_tokenizer import GuardedTokenizer, encoded_ids
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from coordinator.edge.text.detokenizer import Detokenizer

SLICE_CHARACTERS = 16 * 1024
WHOLE_DECODE_TOKENS = 4096
BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class _Model(msgspec.Struct):
    """A vocabulary's kind; the vocabulary itself is asked of the library."""

    type: str | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None


class _TokenizerFile(msgspec.Struct):
    """The parts of tokenizer.json that the library does not tell."""

    decoder: dict[str, Any] | None = None
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    added_tokens: list[dict[str, Any]] = []
    model: _Model | None = None


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


def _has_byte_fallback(decoder: dict[str, Any] | None) -> bool:
    if decoder is None:
        return False
    return decoder.get("type") == "ByteFallback" or any(
        _has_byte_fallback(part) for part in decoder.get("decoders", ())
    )


def _byte_ids(vocabulary: Mapping[str, int], decoder: dict[str, Any] | None) -> frozenset[int]:
    """Ids of the tokens that a decoder with byte fallback takes for bytes."""
    if not _has_byte_fallback(decoder):
        return frozenset()
    return frozenset(
        token_id for token, token_id in vocabulary.items() if BYTE_FALLBACK.fullmatch(token)
    )


class TextTokenizer:
    """One model's tokenizer; safe to use from several threads. What takes a walk through its vocabulary is known from the
    beginning: the first who asked would wait for it on the event loop. `size` is one more than the highest id that has a
    token."""

    def __init__(self, serialized: bytes) -> None:
        self._serialized = serialized
        self._tokenizer = Tokenizer.from_str(serialized.decode())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        described = msgspec.json.decode(serialized, type=_TokenizerFile)
        self.is_byte_level = _is_byte_level(described.decoder)
        self.bound = self._bound(described)
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.size = max(vocabulary.values(), default=-1) + 1
        self._longest_token = max(map(len, vocabulary), default=1)
        self.byte_ids = _byte_ids(vocabulary, described.decoder)
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
    def special_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` leaves out."""
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """How special tokens are spelled."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return tuple(token.content for token in added if token.special)

    @cached_property
    def loose_tokens(self) -> tuple[str, ...]:
        """How the other added tokens are spelled: those that answers show, such as `</think>`."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return tuple(token.content for token in added if not token.special)

    @cached_property
    def normalized_names(self) -> frozenset[str]:
        """Added tokens that are found in a text only when it has been normalized; none if nothing is."""
        if self._tokenizer.normalizer is None:
            return frozenset()
        added = self._tokenizer.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.normalized)

    def normalize(self, text: str) -> str:
        """The text as the vocabulary's words are looked for in it."""
        normalizer = self._tokenizer.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))

    def guarded(self, names: Collection[str]) -> GuardedTokenizer:
        """A copy for which text that spells one of `names` is only text."""
        return GuardedTokenizer(self._serialized, names)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids; special tokens written in the text become their own ids, as in HF. Other threads
        run meanwhile: the batch call lets go of the interpreter, the plain one does not."""
        return encoded_ids(self._tokenizer, text, add_special_tokens=add_special_tokens)

    def is_far_beyond(self, text: str, limit: int) -> bool:
        """Whether a text has far more tokens than `limit`, told from its slices one after the other: a hundred times as
        cheap as to tokenize all of it, and nobody else waits for millions of ids. A cut can take a token apart, so twice
        the limit is asked for, and as much as the longest token for each cut."""
        total, beyond = 0, 2 * limit
        for start in range(0, len(text), SLICE_CHARACTERS):
            piece = text[start : start + SLICE_CHARACTERS]
            total += len(encoded_ids(self._tokenizer, piece, add_special_tokens=False))
            beyond += self._longest_token
            if total > beyond:
                return True
        return False

    def decode_long(self, token_ids: Sequence[int]) -> str:
        """As `decode`, special tokens shown; for many ids a token at a time, so that other threads get their turn."""
        if len(token_ids) <= WHOLE_DECODE_TOKENS:
            return self.decode(token_ids, skip_special_tokens=False)
        detokenizer = self.detokenizer(skip_special_tokens=False)
        pieces = [detokenizer.push(token_id) for token_id in token_ids]
        return "".join(pieces) + detokenizer.finish()

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The whole text at once; ids without a token are left out."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_name(self, token_id: int) -> str:
        """The vocabulary's own spelling, or "" for an id without a token."""
        if not 0 <= token_id < self.size:  # the library takes no more than 32 bits
            return ""
        return self._tokenizer.id_to_token(token_id) or ""

    def token_id(self, name: str) -> int | None:
        """The token of this spelling, if there is one."""
        found: int | None = self._tokenizer.token_to_id(name)
        return found

    def token_bytes(self, token_id: int) -> bytes:
        """What one token says by itself; specials say their own name."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._make_bytes(self.token_name(token_id))
        return known

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text; U+FFFD where a token is only part of a character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def detokenizer(self, *, skip_special_tokens: bool, prompt: Sequence[int] = ()) -> Detokenizer:
        """A fresh incremental decoder for one sequence that goes on after `prompt`."""
        skipped = self.special_ids if skip_special_tokens else frozenset[int]()

        def skips(token_id: int) -> bool:
            return token_id in skipped or not self.token_name(token_id)

        if self.is_byte_level:
            return ByteLevelDetokenizer(self.token_bytes, skips, prompt)

        def decode(token_ids: Sequence[int]) -> str:
            return self.decode(token_ids, skip_special_tokens=skip_special_tokens)

        return WindowDetokenizer(decode, skips, self.byte_ids, prompt)

    def _bound(self, described: _TokenizerFile) -> ByteBound:
        """How few tokens a text can have."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=False)
        sizes = [len(byte_level_bytes(token)) for token in vocabulary]
        sizes += [len(str(token["content"]).encode()) for token in described.added_tokens]
        spelled = sum(character in vocabulary for character in BYTE_OF_CHARACTER)
        return bound_of(msgspec.to_builtins(described), sizes, spelled)

    def _make_bytes(self, token: str) -> bytes:
        if self.is_byte_level:
            return byte_level_bytes(token)
        if fallback := BYTE_FALLBACK.fullmatch(token):
            return bytes.fromhex(fallback[1])
        return token.replace("\u2581", " ").encode()

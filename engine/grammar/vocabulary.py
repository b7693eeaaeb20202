"""What each token of a model spells. Owns the way from a tokenizer.json to bytes, for every row of the embedding.

Byte-level vocabularies write a byte as one printable character, SentencePiece ones a space as U+2581 and single
bytes as <0x41>. Control tokens spell nothing: no grammar lets them through. Rows without a token spell nothing,
tokens without a row do not exist.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"


@dataclass(frozen=True, slots=True)
class GrammarVocabulary:
    """`spelled[token_id]` for every row; b"" for what spells nothing. `eos_token_ids` end a text; `control_ids` are
    the control tokens by their names, which only a grammar that names them lets through."""

    spelled: list[bytes]
    eos_token_ids: tuple[int, ...]
    control_ids: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_directory(
        cls, directory: Path, num_rows: int, eos_token_ids: Sequence[int]
    ) -> GrammarVocabulary:
        """Of a prepared model; ConfigError when its tokenizer cannot be read."""
        path = directory / "tokenizer.json"
        try:
            return cls.parse(path.read_bytes(), num_rows, eos_token_ids)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"cannot read the vocabulary of {path}: {error}") from error

    @classmethod
    def parse(
        cls, serialized: bytes, num_rows: int, eos_token_ids: Sequence[int]
    ) -> GrammarVocabulary:
        """Of a serialized tokenizer."""
        fields = json.loads(serialized)
        spelled = [b""] * num_rows
        spell = byte_level_bytes if _is_byte_level(fields.get("decoder")) else _piece_bytes
        for token, token_id in _words(fields["model"]["vocab"]):
            if token_id < num_rows:
                spelled[token_id] = spell(token)
        controls: dict[str, int] = {}
        for added in fields.get("added_tokens") or ():
            token_id, name = int(added["id"]), str(added["content"])
            if token_id < num_rows:
                spelled[token_id] = b"" if added.get("special") else name.encode()
                if added.get("special"):
                    controls[name] = token_id
        ends = tuple(sorted({token_id for token_id in eos_token_ids if 0 <= token_id < num_rows}))
        for token_id in ends:
            spelled[token_id] = b""
        return cls(spelled, ends, controls)

    @property
    def num_rows(self) -> int:
        """Rows of the embedding, so ids that can be chosen."""
        return len(self.spelled)

    def ends(self, stop_token_ids: Sequence[int]) -> tuple[int, ...]:
        """Ids that end an answer and say nothing: the model's own, and of a request's those without a spelling."""
        silent = {i for i in stop_token_ids if 0 <= i < self.num_rows and not self.spelled[i]}
        return tuple(sorted({*self.eos_token_ids, *silent}))


def eos_token_ids(directory: Path, of_config: Sequence[int]) -> tuple[int, ...]:
    """What ends a text of a prepared model: its configuration's word, and its generation_config.json's."""
    path = directory / "generation_config.json"
    if not path.exists():
        return tuple(of_config)
    try:
        said = json.loads(path.read_bytes()).get("eos_token_id")
        own = () if said is None else (said,) if isinstance(said, int) else tuple(map(int, said))
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be used: {error}") from error
    return tuple(sorted({*of_config, *own}))


def _words(vocabulary: dict[str, int] | list[list[Any]]) -> Iterator[tuple[str, int]]:
    """A unigram model's vocabulary is a list of [piece, score]."""
    if isinstance(vocabulary, dict):
        yield from vocabulary.items()
    else:
        for token_id, entry in enumerate(vocabulary):
            yield str(entry[0]), token_id


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the rest for U+0100 upwards, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    pairs = [(chr(byte), byte) for byte in printable]
    return dict(pairs + [(chr(0x100 + index), byte) for index, byte in enumerate(others)])


_BYTE_OF_CHARACTER = _byte_of_character()


def byte_level_bytes(token: str) -> bytes:
    """Bytes of one token of a byte-level vocabulary; one that is not written in its alphabet is plain text."""
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    except KeyError:
        return token.encode()


def _piece_bytes(token: str) -> bytes:
    if fallback := BYTE_FALLBACK.fullmatch(token):
        return bytes.fromhex(fallback[1])
    return token.replace(SPACE, " ").encode()


def _is_byte_level(decoder: dict[str, Any] | None) -> bool:
    if decoder is None:
        return False
    if decoder.get("type") == "Sequence":
        return any(_is_byte_level(part) for part in decoder.get("decoders", []))
    return decoder.get("type") == "ByteLevel"

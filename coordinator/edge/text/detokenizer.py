"""Token ids to text, a few at a time. Owns what is held back; knows no vocabulary.

The promise: what `push` returned, joined, then `finish`, is the text of all ids decoded at once;
and no replacement character is shown for a character whose last byte is still to come.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
MAX_WINDOW_TOKENS = 64


class Detokenizer(Protocol):
    """Decodes one sequence."""

    def push(self, token_id: int) -> str:
        """Text that is certain now; may be empty."""
        ...

    def finish(self) -> str:
        """What was held back, when no more tokens come."""
        ...


class ByteLevelDetokenizer:
    """For vocabularies whose tokens are bytes: exact, constant work a token."""

    def __init__(self, token_bytes: Callable[[int], bytes], skipped: frozenset[int]) -> None:
        self._token_bytes = token_bytes
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Whole characters that this token completes."""
        if token_id in self._skipped:
            return ""
        return self._decoder.decode(self._token_bytes(token_id))

    def finish(self) -> str:
        """U+FFFD for a character that was never completed, as a full decode shows it."""
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For any decoder: decode a window of recent tokens with and without the new ones.

    The window begins at tokens already shown, so that a decoder which treats the first token of a
    text differently (SentencePiece drops its space) sees the new ones in the middle. A decoder that
    ends in U+FFFD may be inside a character: nothing is shown, for at most `MAX_WINDOW_TOKENS`.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._shown: list[int] = []
        self._shown_text = ""
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """Text that these tokens add after what the window already shows."""
        self._pending.append(token_id)
        text = self._decode([*self._shown, *self._pending])
        unfinished = text.endswith(REPLACEMENT) and len(self._pending) < MAX_WINDOW_TOKENS
        if unfinished or len(text) <= len(self._shown_text):
            return ""
        return self._advance(text)

    def finish(self) -> str:
        """The rest, replacement characters included."""
        if not self._pending:
            return ""
        return self._advance(self._decode([*self._shown, *self._pending]))

    def _advance(self, text: str) -> str:
        new = text[len(self._shown_text) :]
        self._shown, self._pending = self._pending, []
        self._shown_text = self._decode(self._shown)
        return new

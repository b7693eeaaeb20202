"""Token ids to text while they come. Owns what is held back until it is certain.

The promise of both kinds: what `push` returned, joined, then `finish`, is what the ids add to the text
of the prompt before them, as if all had been decoded at once: `decode(prompt + ids)` without
`decode(prompt)`. And no replacement character is shown for a character whose last byte is still to come.
`offset` is where the text of the last pushed token begins, in characters of what was returned.
"""

from __future__ import annotations

import codecs
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

REPLACEMENT = "\ufffd"
MAX_WINDOW_TOKENS = 64
NUM_CONTEXT_TOKENS = 4
MAX_CHARACTER_BYTES = 4


class Detokenizer(Protocol):
    """Decodes one sequence."""

    offset: int

    def push(self, token_id: int) -> str:
        """Text that is certain now; may be empty."""
        ...

    def finish(self) -> str:
        """What was held back, when no more tokens come."""
        ...


class ByteLevelDetokenizer:
    """For vocabularies whose tokens are bytes: exact, constant work a token."""

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        skips: Callable[[int], bool],
        prompt: Sequence[int] = (),
    ) -> None:
        self._token_bytes = token_bytes
        self._skips = skips
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_characters = self.offset = 0
        self._decoder.decode(self._tail(prompt))
        self._shown = self._decoder.getstate()[0].decode("utf-8", "replace")

    def _tail(self, prompt: Sequence[int]) -> bytes:
        """Enough of the prompt's end to know whether it breaks off within a character."""
        tail = b""
        for token_id in reversed(prompt):
            if len(tail) >= MAX_CHARACTER_BYTES:
                break
            if not self._skips(token_id):
                tail = self._token_bytes(token_id) + tail
        return tail

    def push(self, token_id: int) -> str:
        """Whole characters that this token completes."""
        self.offset = self._num_characters
        if self._skips(token_id):
            return ""
        was_within = bool(self._decoder.getstate()[0])
        text = self._said(self._decoder.decode(self._token_bytes(token_id)))
        if was_within and text.startswith(REPLACEMENT):
            self.offset += 1
        return text

    def finish(self) -> str:
        """U+FFFD for a character that was never completed, as a full decode shows it."""
        return self._said(self._decoder.decode(b"", final=True))

    def _said(self, text: str) -> str:
        """A broken character at the prompt's end is shown there, and not again."""
        if text and self._shown:
            text, self._shown = text.removeprefix(self._shown), ""
        self._num_characters += len(text)
        return text


class WindowDetokenizer:
    """For any decoder: decode a window of recent tokens with and without the new ones.

    The window begins at tokens already shown, or at the prompt's last ones, so that a decoder which
    treats the first token of a text differently (SentencePiece drops its space) sees the new ones in
    the middle. A run of byte tokens is held until it ends: one byte that is wrong makes all of it
    U+FFFD. Of other decoders a text that ends in U+FFFD may be inside a character: nothing is shown, for
    at most `MAX_WINDOW_TOKENS`.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        skips: Callable[[int], bool],
        run_ids: Collection[int] = (),
        prompt: Sequence[int] = (),
    ) -> None:
        self._decode = decode
        self._skips = skips
        self._run_ids = run_ids
        self._shown = self._context(prompt)
        self._shown_text = decode(self._shown)
        self._pending: list[int] = []
        self._num_characters = self.offset = 0

    def _context(self, prompt: Sequence[int]) -> list[int]:
        """The prompt's last tokens that can be seen, beginning with one that is no byte."""
        context: list[int] = []
        for token_id in reversed(prompt):
            if self._skips(token_id):
                continue
            context.append(token_id)
            if len(context) >= NUM_CONTEXT_TOKENS and token_id not in self._run_ids:
                break
        return context[::-1]

    def push(self, token_id: int) -> str:
        """Text that these tokens add after what the window already shows."""
        self.offset = self._num_characters
        if self._skips(token_id):
            return ""
        if token_id in self._run_ids:
            self._pending.append(token_id)
            return ""
        run = self._advance() if self._run_ids and self._pending else ""
        self.offset = self._num_characters
        self._pending.append(token_id)
        return run + self._unless_unfinished()

    def _unless_unfinished(self) -> str:
        if self._run_ids:
            return self._advance()
        text = self._decode([*self._shown, *self._pending])
        unfinished = text.endswith(REPLACEMENT) and len(self._pending) < MAX_WINDOW_TOKENS
        return "" if unfinished else self._advance()

    def finish(self) -> str:
        """The rest, replacement characters included."""
        return self._advance() if self._pending else ""

    def _advance(self) -> str:
        text = self._decode([*self._shown, *self._pending])
        new = text[_num_shared(self._shown_text, text) :]
        self._shown, self._pending = [*self._kept(), *self._pending], []
        self._shown_text = self._decode(self._shown)
        self._num_characters += len(new)
        return new

    def _kept(self) -> list[int]:
        """What stays of the window: enough to be no text's beginning."""
        return self._context(self._shown)


def _num_shared(shown: str, text: str) -> int:
    """How much of `text` is shown already: all of `shown`, unless that ended within a run of bytes."""
    if text.startswith(shown):
        return len(shown)
    pairs = zip(shown, text, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

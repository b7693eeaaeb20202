"""One answer on its way through a grammar. Owns which tokens may come next, and when nothing more may come.

    compiled grammar ─► Guide ◄─ every token of the answer, those of earlier attempts included
                          │
                          └─► mask of the next token, is_finished, failure

What it says depends on constraint and tokens alone: whoever takes an answer over makes the same of them. The seam to
a library of grammars is `Matcher`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    Bits = npt.NDArray[np.int32]

WORD_BITS = 32
_OF_A_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_CEILINGS_OF_A_BYTE = np.where(_OF_A_BYTE == 1, np.float32(np.inf), np.float32(-np.inf))
"""[256, 8] float32: eight tokens of a mask at a look."""
NO_WAY_ON = "no token of the model continues it here, or it takes too much work to find one"
TOO_MUCH_WORK = "it takes too much work to go on here"


class Matcher(Protocol):
    """What a library of grammars knows of one answer."""

    def accept(self, token_id: int) -> bool:
        """Go on by a token; False when the grammar has no such way."""
        ...

    def permits(self, token_id: int) -> bool:
        """Whether `accept` would go on by it, and `fill` would name it; changes nothing."""
        ...

    def fill(self, bits: Bits) -> None:
        """Write which tokens may come next: bit i of word w is token 32 w + i."""
        ...

    def may_end(self) -> bool:
        """Whether what was accepted is a whole answer."""
        ...


class CompiledGrammar(Protocol):
    """A constraint made ready for one vocabulary; used by one thread at a time."""

    num_bytes: int

    def matcher(self) -> Matcher:
        """At the beginning of an answer."""
        ...


class Guide:
    """Used by one thread. `ends` are the tokens that end an answer and are no part of its text.

    `failure` says why nothing can follow that should; such an answer must not be told as complete. `is_dead_end` then tells
    a grammar without a way on, or one that takes too much work to find, from a token that was never allowed.
    """

    def __init__(self, matcher: Matcher, num_tokens: int, ends: Sequence[int]) -> None:
        self.is_finished = False
        self.failure: str | None = None
        self.is_dead_end = False
        self._matcher = matcher
        self._ends = frozenset(ends)
        self._bits: Bits = np.zeros(-(-num_tokens // WORD_BITS), dtype=np.int32)
        self._end_bits = _bits_of(self._ends, len(self._bits))
        self._has_text = False
        self._is_current = False
        self._permitted: int | None = None

    def accept_all(self, token_ids: Iterable[int]) -> None:
        """Tokens that were emitted before."""
        for token_id in token_ids:
            self._take(token_id)
        self._conclude()

    def accept(self, token_id: int) -> None:
        """One more token of the answer; notes when it was the last, or should not have been."""
        self._take(token_id)
        self._conclude()

    def _take(self, token_id: int) -> None:
        if self.failure is not None:
            return
        if token_id in self._ends and self._matcher.may_end():
            self.is_finished = True
        elif self.is_finished or not self._matcher.accept(token_id):
            self.is_dead_end = self._was_allowed(token_id)
            told = TOO_MUCH_WORK if self.is_dead_end else f"token {token_id} is not allowed here"
            self.failure = f"the answer's grammar: {told}"
        else:
            self._is_current, self._permitted = False, None

    def _was_allowed(self, token_id: int) -> bool:
        """Whether the mask of this place has it, or would: then it is the matcher that gave up."""
        word, bit = divmod(token_id, WORD_BITS)
        is_named = self._is_current and bool(int(self._bits[word]) >> bit & 1)
        return is_named or token_id == self._permitted

    def _conclude(self) -> None:
        """Whether nothing may follow; only where an answer may end that needs to be looked at."""
        if self.failure is None and not self.is_finished and not self._is_current:
            self.is_finished = self._matcher.may_end() and not self._find_text()

    def mask(self) -> Bits:
        """Which tokens may come next; not to be changed. Nothing at all is a `failure`."""
        has_text, may_end = self._find_text(), self._matcher.may_end()
        bits = self._bits | self._end_bits if may_end else self._bits
        if not (has_text or bits.any()):
            self.failure, self.is_dead_end = f"the answer's grammar: {NO_WAY_ON}", True
        return bits

    def permits(self, token_id: int) -> bool:
        """Whether the mask has this token, found without making a mask; False also for what may end an answer."""
        if (
            self.failure is not None
            or token_id in self._ends
            or not self._matcher.permits(token_id)
        ):
            return False
        self._permitted = token_id
        return True

    def _find_text(self) -> bool:
        """Whether a token that is text may come next."""
        if not self._is_current:
            self._matcher.fill(self._bits)
            self._bits &= ~self._end_bits
            self._has_text, self._is_current = bool(self._bits.any()), True
        return self._has_text


def _bits_of(token_ids: Iterable[int], num_words: int) -> Bits:
    bits = np.zeros(num_words, dtype=np.uint32)
    for token_id in token_ids:
        bits[token_id // WORD_BITS] |= np.uint32(1 << token_id % WORD_BITS)
    return bits.view(np.int32)


def allowed(bits: Bits, num_tokens: int) -> npt.NDArray[np.bool_]:
    """A mask as one truth a token."""
    unpacked = np.unpackbits(bits.view(np.uint8), count=num_tokens, bitorder="little")
    return unpacked.view(np.bool_)


def forbid(logits: npt.NDArray[np.float32], bits: Bits) -> None:
    """Put -inf [vocab] wherever a mask has no bit. A minimum with what a table has for each byte of the mask takes a fifth
    of the time of looking at every token (docs/LOG.md)."""
    ceilings = _CEILINGS_OF_A_BYTE.take(bits.view(np.uint8), axis=0, mode="clip")
    np.fmin(logits, ceilings.reshape(-1)[: len(logits)], out=logits)

"""What a mask does to logits."""

from __future__ import annotations

import numpy as np
import pytest

from engine.grammar.guide import WORD_BITS, allowed, forbid


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 31, 32, 33, 257, 49_152])
def test_forbidden_tokens_have_no_weight_and_others_their_own(num_tokens: int) -> None:
    rng = np.random.default_rng(num_tokens)
    logits = rng.normal(0, 9, num_tokens).astype(np.float32)
    words = -(-num_tokens // WORD_BITS)
    bits = rng.integers(0, 1 << 32, words, dtype=np.uint32).view(np.int32)
    expected = np.where(allowed(bits, num_tokens), logits, np.float32(-np.inf))
    forbid(logits, bits)
    assert logits.tobytes() == expected.tobytes()


def test_what_is_no_number_counts_only_where_it_is_allowed() -> None:
    logits = np.array([np.nan, np.inf, 1.0, -np.inf, np.nan], dtype=np.float32)
    forbid(logits, np.array([0b01100], dtype=np.int32))
    assert logits.tolist() == [-np.inf, -np.inf, 1.0, -np.inf, -np.inf]
    logits = np.array([np.nan, 2.0], dtype=np.float32)
    forbid(logits, np.array([0b11], dtype=np.int32))
    assert not np.isfinite(logits.max())

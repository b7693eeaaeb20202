"""What a mask does to logits, and a token that is looked up without a mask."""

from __future__ import annotations

import numpy as np
import pytest

from engine.grammar.guide import WORD_BITS, allowed, forbid
from protocol.constraints import Constraint, ConstraintKind, json_schema
from tests.unit.engine.grammar.walks import EOS, VOCABULARY, compiler, guide_of


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


COMPILER = compiler()
CONSTRAINTS = (
    json_schema(True),
    json_schema({"properties": {"é": {"maxLength": 3}, "n": {"maximum": 99, "type": "number"}}}),
    Constraint(kind=ConstraintKind.REGEX, text="(é|<tool_call>|ab)+[0-9]{1,3}"),
    Constraint(kind=ConstraintKind.CHOICE, text='["true", "tru", "é"]'),
)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("seed", range(4))
def test_a_token_is_permitted_where_the_mask_has_it(constraint: Constraint, seed: int) -> None:
    rng, guide = np.random.default_rng(seed), guide_of(COMPILER, constraint)
    for _ in range(24):
        permitted = [guide.permits(token_id) for token_id in range(VOCABULARY.num_rows)]
        mask = allowed(guide.mask(), VOCABULARY.num_rows).copy()
        assert guide.failure is None
        mask[EOS] = False
        assert permitted == mask.tolist()
        if not mask.any():
            break
        guide.accept(int(rng.choice(np.flatnonzero(mask))))
        if guide.is_finished:
            break


def test_what_may_end_an_answer_is_no_permitted_text() -> None:
    guide = guide_of(COMPILER, Constraint(kind=ConstraintKind.REGEX, text="a*"))
    assert not guide.permits(EOS)
    assert allowed(guide.mask(), VOCABULARY.num_rows)[EOS]


def test_a_matcher_that_gives_up_on_what_it_permitted_is_a_dead_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guide = guide_of(COMPILER, Constraint(kind=ConstraintKind.REGEX, text="ab*"))
    assert guide.permits(ord("a"))
    monkeypatch.setattr(guide._matcher, "accept", lambda _token_id: False)
    guide.accept(ord("a"))
    assert guide.is_dead_end
    assert "too much work" in str(guide.failure)

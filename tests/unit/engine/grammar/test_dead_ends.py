"""Where an answer's grammar has no way on: that is said by its name, and comes later in an answer than in its trial."""

from __future__ import annotations

import itertools

from engine.grammar.compiler import GrammarCompiler
from engine.grammar.guide import Guide
from engine.grammar.vocabulary import GrammarVocabulary
from engine.kv.block_pool import BlockPool
from engine.kv.sequence import Sequence
from protocol.constraints import json_schema
from protocol.failures import ErrorKind
from protocol.sampling import SamplingParams
from tests.unit.engine.grammar.walks import EOS, SPELLED, compiler, guide_of

COUNTED = json_schema({"patternProperties": {"[A-Za-z0-9-_.:]{1,255}": {"type": "string"}}})
"""As a real schema has it. A mask inside of such a name looks at each way to go on by each token."""
LETTERS = "abXY09-_"


def begun(length: int, patience: int) -> Guide:
    """Within a name, where the vocabulary has words of so many letters."""
    words = [
        (first + second + length * third).encode()
        for first, second, third in itertools.product(LETTERS, LETTERS, LETTERS[:4])
    ]
    vocabulary = GrammarVocabulary([*SPELLED, *words], (EOS,), {})
    guide = guide_of(GrammarCompiler(vocabulary, patience=patience), COUNTED)
    for character in '{"a':
        guide.mask()
        guide.accept(ord(character))
    guide.mask()
    return guide


def sequence_of(guide: Guide) -> Sequence:
    hold = BlockPool(1).empty_hold("seq:r")
    return Sequence("r", 1, [1], 1, SamplingParams(max_tokens=9), b"", hold, guide=guide)


def test_an_answer_is_kept_to_what_its_trial_would_have_given_up() -> None:
    assert begun(60, patience=1).failure is not None
    assert begun(60, patience=4).failure is None


def test_a_mask_that_takes_too_much_work_is_a_dead_end() -> None:
    failure = sequence_of(begun(160, patience=4)).output_failure()
    assert failure is not None
    assert failure.kind is ErrorKind.GRAMMAR_DEAD_END
    assert "too much work" in failure.text


def test_an_allowed_token_that_cannot_be_taken_is_a_dead_end() -> None:
    many = json_schema(
        {"type": "object", "properties": {f"p{number}": {} for number in range(1_200)}}
    )
    guide = guide_of(compiler(), many)
    guide.mask()
    guide.accept(ord("{"))
    failure = sequence_of(guide).output_failure()
    assert failure is not None
    assert failure.kind is ErrorKind.GRAMMAR_DEAD_END


def test_a_token_that_was_never_allowed_is_no_dead_end_but_a_bug() -> None:
    guide = guide_of(compiler(), json_schema({"type": "object"}))
    guide.mask()
    guide.accept(ord("x"))
    failure = sequence_of(guide).output_failure()
    assert failure is not None
    assert failure.kind is ErrorKind.INTERNAL


def test_a_way_on_is_no_failure() -> None:
    guide = guide_of(compiler(), json_schema({"type": "object"}))
    guide.accept(ord("{"))
    assert sequence_of(guide).output_failure() is None

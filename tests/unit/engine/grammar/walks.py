"""Random answers within a grammar, of a vocabulary of bytes and some words. Owns no assertion."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from engine.grammar.compiler import GrammarCompiler
from engine.grammar.guide import allowed
from engine.grammar.vocabulary import GrammarVocabulary
from protocol.sampling import SamplingParams

if TYPE_CHECKING:
    from engine.grammar.guide import Guide
    from protocol.constraints import Constraint

EOS, CONTROL = 256, 257
WORDS = (
    b'{"',
    b'":',
    b'","',
    b'"}',
    b"tru",
    b"e}",
    b"  ",
    b"\n\n",
    "é".encode(),
    b"<tool_call>",
    b"ab",
)
SPELLED = [bytes([byte]) for byte in range(256)] + [b"", b"", *WORDS]
VOCABULARY = GrammarVocabulary([*SPELLED, b""], (EOS,), {"<|end|>": EOS, "<|python_tag|>": CONTROL})
CLOSING = frozenset(b'"}],:0123456789truefalsn.-')


def compiler() -> GrammarCompiler:
    return GrammarCompiler(VOCABULARY)


def guide_of(compiler: GrammarCompiler, constraint: Constraint, **sampling: object) -> Guide:
    params = SamplingParams(max_tokens=9, **sampling)  # type: ignore[arg-type]
    return compiler.guide(compiler.compile(constraint), params)


def walk(guide: Guide, seed: int, limit: int = 400) -> tuple[str, bytes, list[int]]:
    """(how it ended, text, tokens) of a random answer that likes to come to an end."""
    rng, text, tokens = np.random.default_rng(seed), b"", list[int]()
    for _ in range(limit):
        ids = np.flatnonzero(allowed(guide.mask(), VOCABULARY.num_rows))
        if failure := failure_of(guide):
            return failure, text, tokens
        if EOS in ids and rng.random() < 0.3:
            return "stop", text, tokens
        ids = ids[ids != EOS]
        closing = [
            i for i in ids if VOCABULARY.spelled[i] and set(VOCABULARY.spelled[i]) <= CLOSING
        ]
        token = int(rng.choice(closing if closing and rng.random() < 0.7 else ids))
        guide.accept(token)
        text, tokens = text + VOCABULARY.spelled[token], [*tokens, token]
        if failure := failure_of(guide):
            return failure, text, tokens
        if guide.is_finished:
            return "stop", text, tokens
    return "length", text, tokens


def failure_of(guide: Guide) -> str | None:
    return guide.failure


def tokens_of(text: str) -> list[int]:
    return list(text.encode())


def accepts(guide: Guide, text: str) -> bool:
    """Whether the whole text is within the grammar, byte by byte."""
    guide.accept_all(tokens_of(text))
    return guide.failure is None


def may_end(guide: Guide) -> bool:
    return guide.is_finished or bool(allowed(guide.mask(), VOCABULARY.num_rows)[EOS])


def parse(text: bytes) -> object:
    return json.loads(text)

"""The process that tries constraints for the coordinator, and can be ended: one JSON line in, one out.

usage: python -m deploy.processes.grammar_main MODEL_DIRECTORY VOCAB_SIZE EOS_IDS --parent PID
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
from pathlib import Path

import msgspec
import numpy as np

from deploy.processes.child import follow_parent, harden
from deploy.processes.yielding import yield_cores
from engine.grammar.compiler import GrammarCompiler
from engine.grammar.guide import CompiledGrammar, allowed
from engine.grammar.vocabulary import GrammarVocabulary, eos_token_ids
from protocol.constraints import Constraint
from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams

NICENESS = 10
SLICE_S = 1e-4
MAX_ADDRESS_SPACE_BYTES = 2 << 30
"""A grammar that takes more ends the process."""
MAX_WORK_S = 0.3
"""Of processor time: workers do it again beside their engine."""
NUM_WALKS, WALK_TOKENS, LONG_WALK_TOKENS = 8, 8, 256
"""How many answers are begun to try a grammar, how long they get, and how long one more: what is ambiguous costs more with each token."""
WALK_S = 0.25
"""Of processor time, for the masks of each kind: many times what those of real schemas take."""
TOO_MUCH_WORK = "it takes too much work to keep an answer to it"


def refusal(compiler: GrammarCompiler, constraint: Constraint) -> str | None:
    """Why the constraint cannot be honoured; None when it can, and has a first token."""
    try:
        before_s = _worked_s()
        grammar = compiler.compile(constraint)
        guide = compiler.guide(grammar, SamplingParams(max_tokens=1))
    except InvalidRequest as error:
        return str(error)
    guide.mask()
    if _worked_s() - before_s > MAX_WORK_S:
        return "it takes too much work to compile"
    return guide.failure or _dead_end(compiler, grammar)


def _worked_s() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def _dead_end(compiler: GrammarCompiler, grammar: CompiledGrammar) -> str | None:
    """Whether answers begun by chance soon come to where the grammar costs more than it may, or a long one costs much all
    the way: workers do that work between two steps of everybody's answers."""
    spent_s = 0.0
    for seed in range(NUM_WALKS):
        failure, cost_s = _walk(compiler, grammar, seed, WALK_TOKENS)
        spent_s += cost_s
        if failure is not None or spent_s > WALK_S:
            return TOO_MUCH_WORK
    _, cost_s = _walk(compiler, grammar, NUM_WALKS, LONG_WALK_TOKENS)
    return TOO_MUCH_WORK if cost_s > WALK_S else None


def _walk(
    compiler: GrammarCompiler, grammar: CompiledGrammar, seed: int, most: int
) -> tuple[str | None, float]:
    """(where the grammar failed, what it cost) of an answer that ends when it must, or has cost too much."""
    guide, cost_s = compiler.guide(grammar, SamplingParams(max_tokens=1)), 0.0
    rows, ends = compiler.vocabulary.num_rows, list(compiler.vocabulary.eos_token_ids)
    chance = np.random.default_rng(seed)
    for _ in range(most):
        before_s = _worked_s()
        may_come = allowed(guide.mask(), rows).copy()
        cost_s += _worked_s() - before_s
        may_come[ends] = False
        start = int(chance.integers(rows))
        token_id = (start + int(np.roll(may_come, -start).argmax())) % rows
        if guide.failure is not None or cost_s > WALK_S or not may_come[token_id]:
            break
        before_s = _worked_s()
        guide.accept(token_id)
        cost_s += _worked_s() - before_s
        if guide.is_finished:
            break
    return guide.failure, cost_s


def main() -> int:
    """Until the parent closes the pipe, or ends the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("vocab_size", type=int)
    parser.add_argument("eos", type=json.loads)
    parser.add_argument("--parent", type=int, default=0)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is for the coordinator
    follow_parent(arguments.parent)
    harden()
    yield_cores(NICENESS, SLICE_S)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE_BYTES, MAX_ADDRESS_SPACE_BYTES))
    eos = eos_token_ids(arguments.directory, arguments.eos)
    vocabulary = GrammarVocabulary.from_directory(arguments.directory, arguments.vocab_size, eos)
    compiler = GrammarCompiler(vocabulary, patience=1)
    answer(None)
    for line in sys.stdin.buffer:
        answer(refusal(compiler, msgspec.json.decode(line, type=Constraint)))
    return 0


def answer(told: str | None) -> None:
    """One line."""
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())

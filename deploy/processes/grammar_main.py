"""The process that tries constraints for the coordinator, and can be ended: one JSON line in, one out.

usage: python -m deploy.processes.grammar_main MODEL_DIRECTORY VOCAB_SIZE EOS_IDS --parent PID
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
from pathlib import Path

import msgspec
import numpy as np

from deploy.processes.child import follow_parent, harden
from engine.grammar.compiler import GrammarCompiler
from engine.grammar.guide import CompiledGrammar, allowed
from engine.grammar.vocabulary import GrammarVocabulary, eos_token_ids
from protocol.constraints import Constraint
from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams

NICENESS = 10
MAX_ADDRESS_SPACE_BYTES = 2 << 30
"""A grammar that takes more ends the process."""
MAX_WORK_S = 0.3
"""Of processor time: workers do it again beside their engine."""
NUM_WALKS, WALK_TOKENS, WALK_S = 8, 8, 0.05
"""How many answers are begun to try a grammar, how long they get, and what that may cost."""


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
    """Whether answers begun by chance soon come to where the grammar costs more than it may: no worker should."""
    until_s = _worked_s() + WALK_S
    for seed in range(NUM_WALKS):
        guide = compiler.guide(grammar, SamplingParams(max_tokens=1))
        chance = np.random.default_rng(seed)
        for _ in range(WALK_TOKENS):
            token_ids = np.flatnonzero(allowed(guide.mask(), compiler.vocabulary.num_rows))
            if guide.failure is None and len(token_ids):
                guide.accept(int(chance.choice(token_ids)))
            if guide.failure is not None:
                return "it takes too much work to keep an answer to it"
            if guide.is_finished or _worked_s() > until_s:
                break
    return None


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
    os.nice(NICENESS)
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

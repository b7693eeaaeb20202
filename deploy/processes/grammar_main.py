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

from deploy.processes.child import follow_parent, harden
from engine.grammar.compiler import GrammarCompiler
from engine.grammar.vocabulary import GrammarVocabulary, eos_token_ids
from protocol.constraints import Constraint
from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams

NICENESS = 10
MAX_ADDRESS_SPACE_BYTES = 2 << 30
"""A grammar that takes more ends the process."""
MAX_WORK_S = 0.3
"""Of processor time: workers do it again beside their engine."""


def refusal(compiler: GrammarCompiler, constraint: Constraint) -> str | None:
    """Why the constraint cannot be honoured; None when it can, and has a first token."""
    try:
        before_s = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        guide = compiler.guide(compiler.compile(constraint), SamplingParams(max_tokens=1))
    except InvalidRequest as error:
        return str(error)
    guide.mask()
    if resource.getrusage(resource.RUSAGE_SELF).ru_utime - before_s > MAX_WORK_S:
        return "it takes too much work to compile"
    return guide.failure


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
    compiler = GrammarCompiler(vocabulary)
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

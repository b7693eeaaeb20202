"""Orders wait for their grammars, and for nothing else."""

from __future__ import annotations

from typing import Any

from engine.grammar.guide import CompiledGrammar, Guide
from protocol.constraints import Constraint, ConstraintKind
from protocol.failures import ErrorKind
from protocol.messages.orders import Abort, Decode, Fence
from protocol.sampling import SampledToken, SamplingParams
from tests.unit.engine.grammar.walks import EOS, compiler
from tests.unit.worker.lone_worker import LoneWorker
from worker.gate import GrammarGate, GrammarMade

REGEX = Constraint(kind=ConstraintKind.REGEX, text="ab*c")


class Shelf:
    """Satisfies Grammars; compiles when it is told to."""

    def __init__(self) -> None:
        self.compiler = compiler()
        self.started: list[Constraint] = []
        self.kept: dict[str, CompiledGrammar] = {}

    def find(self, key: str) -> CompiledGrammar | None:
        return self.kept.get(key)

    def start(self, constraint: Constraint) -> None:
        self.started.append(constraint)

    def keep(self, key: str, grammar: CompiledGrammar) -> None:
        self.kept[key] = grammar

    def guide(self, grammar: CompiledGrammar, sampling: SamplingParams) -> Guide:
        return self.compiler.guide(grammar, sampling)

    def made(self) -> GrammarMade:
        return GrammarMade(REGEX.key, self.compiler.compile(REGEX))


class Gated(LoneWorker):
    """A worker with a shelf, whose begun sequences are noted."""

    def __init__(self, *, has_grammars: bool = True) -> None:
        super().__init__()
        self.shelf = Shelf()
        gate = GrammarGate(self.shelf if has_grammars else None, self.loop.outbox, self.context)
        object.__setattr__(self.roles, "gate", gate)

    def guides(self) -> list[Guide | None]:
        return [sequence.guide for sequence in self.roles.decode.scheduler]

    def errors(self, said: list[Any]) -> list[Any]:
        outputs = [output for message in said for output in getattr(message, "outputs", [])]
        return [output.error for output in outputs if output.error is not None]


def decode(name: str = "r", emitted: str = "", deadline_in_s: float = 60.0) -> Decode:
    return Decode(
        incarnation="w1",
        request_id=name,
        attempt=1,
        token_ids=[1, 2, 3, *emitted.encode()],
        num_prompt_tokens=3,
        sampling=SamplingParams(max_tokens=9, constraint=REGEX, eos_token_ids=(EOS,)),
        deadline_in_s=deadline_in_s,
    )


def test_an_order_waits_for_its_grammar_and_is_here_meanwhile() -> None:
    worker = Gated()
    worker.loop.take(decode("a"))
    worker.loop.take(decode("b"))
    assert worker.shelf.started == [REGEX]
    assert worker.roles.live() == [("a", 1), ("b", 1)]
    assert not worker.roles.is_empty
    worker.loop.take(worker.shelf.made())
    assert len(worker.guides()) == 2
    assert worker.roles.gate.is_empty
    worker.loop.take(decode("c"))
    assert len(worker.guides()) == 3
    assert worker.shelf.started == [REGEX]


def test_who_takes_over_has_seen_what_was_emitted() -> None:
    worker = Gated()
    worker.loop.take(decode(emitted="ab"))
    worker.loop.take(worker.shelf.made())
    [guide] = worker.guides()
    assert guide is not None
    guide.accept(ord("c"))
    assert guide.is_finished


def test_tokens_of_another_grammar_end_the_request_and_not_the_worker() -> None:
    worker = Gated()
    said = worker.turn(decode(emitted="x"), worker.shelf.made())
    assert [error.kind for error in worker.errors(said)] == [ErrorKind.INTERNAL]
    assert worker.roles.is_empty


def test_without_a_grammar_nobody_begins() -> None:
    worker = Gated()
    said = worker.turn(decode(), GrammarMade(REGEX.key, None, "no such thing"))
    assert [error.text for error in worker.errors(said)] == ["no such thing"]
    assert worker.roles.is_empty


def test_an_engine_without_grammars_says_so() -> None:
    worker = Gated(has_grammars=False)
    [error] = worker.errors(worker.turn(decode()))
    assert "grammar" in error.text


def test_who_waits_can_be_aborted_fenced_and_late() -> None:
    worker = Gated()
    worker.loop.take(decode("a"))
    worker.loop.take(Abort(incarnation="w1", request_id="a", attempt=1))
    assert worker.roles.is_empty
    worker.loop.take(decode("b", deadline_in_s=2.0))
    [error] = worker.errors([*worker.turn(after_s=3.0), *worker.turn()])
    assert error.kind is ErrorKind.DEADLINE_EXCEEDED
    worker.loop.take(decode("c"))
    worker.loop.take(Fence(incarnation="w1"))
    assert worker.roles.is_empty
    worker.loop.take(worker.shelf.made())
    assert worker.roles.is_empty


def test_a_deadline_runs_while_an_order_waits() -> None:
    worker = Gated()
    worker.turn(decode(deadline_in_s=10.0))
    worker.turn(after_s=4.0)
    worker.loop.take(worker.shelf.made())
    [sequence] = worker.roles.decode.scheduler
    assert sequence.deadline_s - worker.now_s() == 6.0


def test_a_token_that_no_grammar_has_is_told_to_nobody() -> None:
    """The attesting mock draws without a mask."""
    worker = Gated()
    worker.turn(decode())
    said = worker.turn(worker.shelf.made())
    outputs = [output for message in said for output in getattr(message, "outputs", [])]
    assert [output.tokens for output in outputs] == [[]]
    assert [error.kind for error in worker.errors(said)] == [ErrorKind.INTERNAL]
    assert worker.roles.is_empty


def test_an_answer_ends_where_nothing_may_follow() -> None:
    worker = Gated()
    worker.loop.take(decode(emitted="ab"))
    worker.loop.take(worker.shelf.made())
    [sequence] = worker.roles.decode.scheduler
    sequence.append(SampledToken(token_id=ord("c")))
    assert sequence.finish_reason() == ("stop", None)

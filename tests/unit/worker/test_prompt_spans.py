"""Where a prompt's time went, as a worker says it: what others' steps took is waiting, and not computing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from protocol.messages.reports import Output, Outputs
from protocol.sampling import SampledToken, SamplingParams
from protocol.spans import Span
from tests.unit.worker.lone_worker import LoneWorker, decode_order, prefill_order

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from engine.kv.sequence import Scheduled
    from protocol.messages.orders import Decode, Prefill

STEP_S = 1.0
NUM_TOKENS = 40
"""Longer than what is computed in one piece."""


class SlowRunner:
    """A step takes a second of the worker's clock; notes whose."""

    backend = "slow"

    def __init__(self, worker: LoneWorker) -> None:
        self._worker, self._runner = worker, worker.roles.runner._runner
        worker.roles.runner._runner = self
        self.steps: list[set[str]] = []

    def execute(self, batch: SequenceOf[Scheduled]) -> list[SampledToken | None]:
        self.steps.append({scheduled.sequence.request_id for scheduled in batch})
        self._worker.at_s += STEP_S
        return self._runner.execute(batch)


def named(
    order: Prefill | Decode, name: str, first_token: int, due_in_s: float
) -> Prefill | Decode:
    return msgspec.structs.replace(
        order,
        request_id=name,
        token_ids=list(range(first_token, first_token + NUM_TOKENS)),
        num_prompt_tokens=NUM_TOKENS,
        sampling=SamplingParams(max_tokens=1),
        due_in_s=due_in_s,
    )


def until_told(worker: LoneWorker, name: str) -> Output:
    """The first output of that request."""
    for _ in range(50):
        said = [message for message in worker.turn() if isinstance(message, Outputs)]
        for output in (output for message in said for output in message.outputs):
            if output.request_id == name:
                return output
    raise AssertionError("nothing was told")


@pytest.mark.parametrize(
    "order", [prefill_order(), decode_order(source=None)], ids=["apart", "beside"]
)
def test_a_prompt_that_is_set_aside_waits_and_is_not_computed(order: Prefill | Decode) -> None:
    worker = LoneWorker(num_blocks=32)
    runner = SlowRunner(worker)
    worker.turn(named(order, "first", 0, due_in_s=50.0))
    assert runner.steps == [{"first"}]
    worker.turn(named(order, "sooner", 100, due_in_s=0.0))
    told = until_told(worker, "first")
    computed = sum("first" in step for step in runner.steps)
    assert len(runner.steps) - computed > 1, "it was set aside"
    assert told.spans[Span.PREFILL] == pytest.approx(computed * STEP_S)
    assert told.spans[Span.QUEUE] == pytest.approx((len(runner.steps) - computed) * STEP_S)

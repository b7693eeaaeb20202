"""What reaches a worker with a token that its model does not have ends that request, and nothing else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from decode.role import DecodeRole
from decode.scheduler import DecodeScheduler
from engine.context import WorkerContext
from engine.kv.allocation import Allocator
from engine.kv.block_pool import BlockPool
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.sharing.exchange import BlockExchange
from prefill.role import PrefillRole
from prefill.scheduler import PrefillScheduler
from protocol.ids import RandomIds
from protocol.messages.orders import Decode, Prefill
from protocol.sampling import SampledToken, SamplingParams

VOCAB = 10


class Surroundings:
    """A clock that stands, an outbox that remembers, a runner that always says 1."""

    backend = "none"

    def __init__(self) -> None:
        self.outputs: list[Any] = []

    def now_s(self) -> float:
        return 1.0

    def output(self, output: Any) -> None:
        self.outputs.append(output)

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None

    def execute(self, batch: Any) -> list[SampledToken | None]:
        assert all(max(one.sequence.token_ids) < VOCAB for one in batch)
        return [SampledToken(token_id=1) if one.samples else None for one in batch]


def order(kind: Any, request_id: str, token_ids: list[int]) -> Any:
    return kind(
        incarnation="i",
        request_id=request_id,
        attempt=1,
        token_ids=token_ids,
        num_prompt_tokens=len(token_ids),
        sampling=SamplingParams(max_tokens=2),
        deadline_in_s=60.0,
    )


def context(around: Surroundings) -> WorkerContext:
    return WorkerContext("W", "i", b"f", around, RandomIds(), vocab_size=VOCAB)


@pytest.mark.parametrize("unknown", [VOCAB, 2**31 - 1, -1])
def test_decode_ends_the_request_and_goes_on(unknown: int) -> None:
    around, pool = Surroundings(), BlockPool(8)
    scheduler = DecodeScheduler(Allocator(pool, 4), max_num_batched_tokens=16, max_num_seqs=4)
    role = DecodeRole(scheduler, around, around, around, context(around))
    role.decode(order(Decode, "bad", [1, unknown]))
    role.decode(order(Decode, "good", [1, 2]))
    assert [(one.request_id, one.finish_reason) for one in around.outputs] == [("bad", "error")]
    assert str(unknown) in around.outputs[0].error.text
    while role.step():
        pass
    assert around.outputs[-1].request_id == "good"
    assert role.is_empty


@pytest.mark.parametrize("unknown", [VOCAB, -1])
def test_prefill_ends_the_request_and_goes_on(unknown: int) -> None:
    around, pool = Surroundings(), BlockPool(8)
    scheduler = PrefillScheduler(Allocator(pool, 4), max_num_batched_tokens=16, max_num_seqs=4)
    exchange = BlockExchange(around, LeaseTable(around), around)
    role = PrefillRole(scheduler, around, exchange, around, context(around))
    role.prefill(order(Prefill, "bad", [unknown, 1]))
    role.prefill(order(Prefill, "good", [1, 2]))
    assert [(one.request_id, one.finish_reason) for one in around.outputs] == [("bad", "error")]
    assert role.step()
    assert around.outputs[-1].request_id == "good"


def test_a_context_without_a_vocabulary_refuses_nothing() -> None:
    around = Surroundings()
    without = WorkerContext("W", "i", b"f", around, RandomIds())
    assert without.beyond_vocabulary([2**40]) is None
    assert context(around).beyond_vocabulary([]) is None
    assert msgspec.json.encode(context(around).beyond_vocabulary([VOCAB]))

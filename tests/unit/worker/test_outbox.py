"""What a worker says leaves in frames that are never too large, and says the same as if it left in one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from protocol import wire
from protocol.finish import FinishReason
from protocol.messages.reports import Output, Outputs
from protocol.sampling import SampledToken, ScoredToken
from worker.outbox import FRAME_SCORES, Outbox

MOST_BYTES = 128 * 1024


def scored(count: int, num_top: int, prompt_index: int = 1) -> Output:
    top = [(40_000 + rank, -0.123456789 * rank) for rank in range(num_top)]
    return Output(
        incarnation="i",
        request_id="r",
        attempt=2,
        index=0,
        tokens=[SampledToken(token_id=7)],
        prompt_index=prompt_index,
        prompt_scores=[ScoredToken(logprob=-float(at), rank=at, top=top) for at in range(count)],
        finish_reason=FinishReason.LENGTH,
        num_cached_tokens=5,
        num_pulled_blocks=3,
    )


def told(*outputs: Output) -> list[Outputs]:
    said: list[Any] = []
    lines = SimpleNamespace(tell=said.append)
    outbox = Outbox(cast("Any", lines), cast("Any", SimpleNamespace(incarnation="i")))
    for output in outputs:
        outbox.output(output)
    outbox.flush()
    return said


@pytest.mark.parametrize("num_top", [0, 1, 20])
@pytest.mark.parametrize("count", [0, 1, 200, FRAME_SCORES, 8192])
def test_scores_of_a_long_piece_leave_in_frames_of_bounded_size(count: int, num_top: int) -> None:
    output = scored(count, num_top)
    frames = told(output)
    assert all(len(wire.encode(frame)) < MOST_BYTES for frame in frames)
    pieces = [piece for frame in frames for piece in frame.outputs]
    assert [score for piece in pieces for score in piece.prompt_scores] == output.prompt_scores
    at = output.prompt_index
    for piece in pieces:
        assert (piece.prompt_index, piece.index, piece.attempt) == (at, 0, 2)
        at += len(piece.prompt_scores)
    *before, last = pieces
    assert all(not (piece.tokens or piece.finish_reason) for piece in before)
    assert sum(piece.num_pulled_blocks for piece in pieces) == 3
    assert (last.tokens, last.finish_reason) == (output.tokens, FinishReason.LENGTH)
    assert last.num_cached_tokens == 5


def test_scores_of_many_requests_leave_in_frames_of_bounded_size() -> None:
    frames = told(*(scored(30, 20) for _ in range(100)))
    assert all(len(wire.encode(frame)) < MOST_BYTES for frame in frames)
    assert sum(len(frame.outputs) for frame in frames) == 100

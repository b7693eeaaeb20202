"""What a worker says of a sequence, its beginning included. Owns that an output counts its tokens and scores from where the
sequence stands, and what a sequence must have before anything of it is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.failures import Failure
from protocol.messages.reports import Output

if TYPE_CHECKING:
    from engine.context import WorkerContext
    from engine.kv.sequence import Sequence
    from protocol.adapters import AdapterRef
    from protocol.finish import FinishReason
    from protocol.sampling import SampledToken
    from protocol.spans import Spans


def begin_with(
    sequence: Sequence, adapter: AdapterRef | None, context: WorkerContext
) -> Failure | None:
    """Give a sequence its adapter; why it cannot be computed at all, if so."""
    held = context.hold_adapter(adapter)
    if isinstance(held, Failure):
        return held
    sequence.adapter = held
    return context.beyond_vocabulary(sequence.token_ids)


def output_of(  # noqa: PLR0913 - what an output may say, each by its name: a dict of it would cost more than all else here
    sequence: Sequence,
    context: WorkerContext,
    tokens: list[SampledToken],
    *,
    finish_reason: FinishReason | None = None,
    stop_token_id: int | None = None,
    error: Failure | None = None,
    num_cached_tokens: int = 0,
    num_pulled_blocks: int = 0,
    spans: Spans | None = None,
) -> Output:
    """The last `tokens` of a sequence, the scores of its prompt that nobody was told, its embedding once that is
    complete, and what is said besides."""
    prompt_index, scores = sequence.take_scores()
    return Output(
        incarnation=context.incarnation,
        request_id=sequence.request_id,
        attempt=sequence.attempt,
        index=sequence.num_output_tokens - len(tokens),
        tokens=tokens,
        prompt_index=prompt_index,
        prompt_scores=scores,
        embedding=sequence.embedding,
        finish_reason=finish_reason,
        stop_token_id=stop_token_id,
        error=error,
        num_cached_tokens=num_cached_tokens,
        num_pulled_blocks=num_pulled_blocks,
        spans={} if spans is None else spans,
        reads=sequence.take_reads(),
    )

"""What a worker says of a sequence. Owns that an output counts its tokens and scores from where the sequence stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from protocol.messages.reports import Output

if TYPE_CHECKING:
    from engine.context import WorkerContext
    from engine.kv.sequence import Sequence
    from protocol.sampling import SampledToken


def output_of(
    sequence: Sequence, context: WorkerContext, tokens: list[SampledToken], **said: Any
) -> Output:
    """The last `tokens` of a sequence, the scores of its prompt that nobody was told, its embedding once that is
    complete, and what is `said` besides."""
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
        **said,
    )

"""What spans say of a request. Owns the names: OpenTelemetry's `gen_ai.*`, and vLLM's where dashboards read those.

The conventions are still in development; these are the names of semantic-conventions-genai as of
late 2026 (`provider.name`, `input_tokens`), beside vLLM's `gen_ai.latency.*` and `gen_ai.request.id`.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from coordinator.edge.telemetry.metrics import DECODE_STAGES, PREFILL_STAGES, QUEUE_STAGES
from coordinator.edge.telemetry.request_record import cached_of_prompts
from protocol.finish import FinishReason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from coordinator.cluster.timeline import Stage
    from coordinator.edge.telemetry.choice_meter import ChoiceMeter
    from coordinator.edge.telemetry.request_record import RequestRecord

    Attributes = dict[str, str | bool | int | float | list[str]]


def request_attributes(record: RequestRecord) -> Attributes:
    """Of the root span."""
    facts, sampling, choices = record.facts, record.sampling, record.choices
    found: Attributes = {
        "gen_ai.operation.name": facts.operation,
        "gen_ai.provider.name": "baton",
        "gen_ai.request.model": facts.model,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.request.stream": facts.is_stream,
        "gen_ai.request.id": facts.label,
        "gen_ai.response.id": facts.reply_id,
        "gen_ai.response.model": facts.response_model,
        "gen_ai.response.finish_reasons": [_ended(choice) for choice in choices],
        "gen_ai.usage.input_tokens": record.num_prompt_tokens,
        "gen_ai.usage.output_tokens": sum(choice.num_tokens for choice in choices),
        "gen_ai.usage.cache_read.input_tokens": sum(cached_of_prompts(choices, facts)),
        "baton.replays": sum(choice.timeline.replays for choice in choices),
    }
    if sampling.top_k:
        found["gen_ai.request.top_k"] = sampling.top_k
    if facts.choices_per_prompt > 1:
        found["gen_ai.request.choice.count"] = facts.choices_per_prompt
    if record.error is not None:
        found["error.type"] = record.error
    return found | _latencies(record)


def _latencies(record: RequestRecord) -> Attributes:
    """vLLM's attributes, in seconds; of the choice that ended last."""
    last = max(record.choices, key=lambda choice: choice.end_s)
    found: Attributes = {"gen_ai.latency.e2e": record.end_s - last.arrival_s}
    first_s = min((c.first_s for c in record.choices if c.num_tokens), default=None)
    if first_s is None:
        return found
    spent_s: defaultdict[Stage, float] = defaultdict(float)
    for segment in last.segments():
        spent_s[segment.stage] += segment.seconds

    def total(stages: Iterable[Stage]) -> float:
        return sum(spent_s[stage] for stage in stages)

    return found | {
        "gen_ai.response.time_to_first_chunk": first_s - last.arrival_s,
        "gen_ai.latency.time_to_first_token": first_s - last.arrival_s,
        "gen_ai.latency.time_in_queue": total(QUEUE_STAGES),
        "gen_ai.latency.time_in_model_prefill": total(PREFILL_STAGES),
        "gen_ai.latency.time_in_model_decode": total(DECODE_STAGES),
        "gen_ai.latency.time_in_model_inference": total((*PREFILL_STAGES, *DECODE_STAGES)),
    }


def _ended(choice: ChoiceMeter) -> str:
    return (choice.finish_reason or FinishReason.ERROR).value


def choice_attributes(choice: ChoiceMeter) -> Attributes:
    """Of one choice."""
    return {
        "gen_ai.usage.output_tokens": choice.num_tokens,
        "gen_ai.response.finish_reasons": [_ended(choice)],
        "baton.replays": choice.timeline.replays,
    }

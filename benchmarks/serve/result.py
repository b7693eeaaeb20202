"""The result file: vLLM's keys, and ours beside them. Owns its shape; measures nothing."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from benchmarks.serve.measure import summary

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from benchmarks.serve.answer import Outcome
    from benchmarks.serve.load import Run
    from benchmarks.serve.pools import PoolWatch
    from benchmarks.serve.search import RateSearch

ALWAYS = (50.0, 90.0, 99.0)
"""Percentiles that the file has whether or not they were asked for."""


@dataclass
class Measured:
    """One endpoint's run with all that belongs to it. `traffic_rate` is the rate it was measured at, unless
    it was `self_timed`: at the times that the dataset brings. `unreliable` says why its figures are not the server's."""

    name: str
    url: str
    model: str
    traffic_rate: float
    self_timed: bool
    run: Run
    pools: PoolWatch
    unreliable: str = ""
    search: RateSearch | None = None
    result: dict[str, Any] = field(default_factory=dict)


def error_counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How often each cause failed a request, most frequent first."""
    return dict(Counter(o.error for o in outcomes if not o.is_good).most_common())


def make_result(measured: Measured, flags: argparse.Namespace) -> dict[str, Any]:
    """Everything about one endpoint's run."""
    run = measured.run
    percentiles = sorted({*ALWAYS, *flags.percentiles})
    result = {
        **_settings(measured, flags),
        **summary(run.outcomes, run.duration_s, percentiles, flags.slo_ms),
        "unreliable": measured.unreliable or None,
        "client": asdict(run.overhead),
        "pools": measured.pools.summary(run.duration_s),
        "pool_shape": measured.pools.shape() or None,
        "error_counts": error_counts(run.outcomes),
    }
    if flags.max_concurrency is None:  # nothing waited
        result = {name: value for name, value in result.items() if "client_queue" not in name}
    if measured.search is not None:
        result["max_rate"] = _search(measured.search, flags)
    return result


def _settings(measured: Measured, flags: argparse.Namespace) -> dict[str, Any]:
    rate = measured.traffic_rate
    settings = {
        "date": datetime.now(UTC).strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": flags.backend,
        "backend": flags.backend,
        "label": flags.label or measured.name,
        "command": flags.command,
        "url": measured.url,
        "model_id": measured.model,
        "tokenizer_id": flags.tokenizer,
        "dataset_name": flags.dataset_name,
        "seed": flags.seed,
        "num_prompts": flags.num_prompts,
        **flags.metadata,
        "request_rate": "inf" if math.isinf(rate) else rate,
        "self_timed": measured.self_timed,
        "burstiness": "inf" if math.isinf(flags.burstiness) else flags.burstiness,
        "max_concurrency": flags.max_concurrency,
        "goodput_slo_ms": flags.slo_ms or None,
    }
    if flags.ramp_up_strategy is not None:
        for name in ("ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps"):
            settings[name] = getattr(flags, name)
    return settings


def _search(search: RateSearch, flags: argparse.Namespace) -> dict[str, Any]:
    return {
        "rate": search.best,
        "is_bounded": search.is_bounded,
        "slo_ms": flags.slo_ms,
        "slo_attainment": search.target,
        "precision": search.precision,
        "trials": [asdict(trial) for trial in search.trials],
    }


def detailed(run: Run) -> dict[str, Any]:
    """Every request's own figures, in seconds, under vLLM's keys; `due_times` is ours."""
    outcomes = run.outcomes
    return {
        "input_lens": [o.num_prompt_tokens for o in outcomes],
        "output_lens": [o.num_output_tokens for o in outcomes],
        "ttfts": [o.ttft_s for o in outcomes],
        "itls": [o.gaps_s for o in outcomes],
        "latencies": [o.latency_s for o in outcomes],
        "start_times": [o.start_s for o in outcomes],
        "due_times": [o.due_s for o in outcomes],
        "queue_times": [o.queue_s for o in outcomes],
        "generated_texts": [o.text for o in outcomes],
        "errors": [o.error for o in outcomes],
    }


def file_name(flags: argparse.Namespace, model: str) -> str:
    """What --save-result writes to when --result-filename is not given, after vLLM's pattern."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    limit = "" if flags.max_concurrency is None else f"-concurrency{flags.max_concurrency}"
    base = model.rpartition("/")[2]
    return f"{flags.label or flags.backend}-{flags.request_rate}qps{limit}-{base}-{stamp}.json"

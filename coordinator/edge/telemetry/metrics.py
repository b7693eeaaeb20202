"""What the edge counts. Owns its Prometheus registry: the field's `vllm:` names and our own `baton_` ones.

Dashboards, routers and benchmarks of this field look for `vllm:` names, so those are exported where
the meaning is the same. Prompts never come near a label.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, ProcessCollector
from prometheus_client.exposition import generate_latest

from coordinator.cluster.timeline import Stage
from coordinator.edge.telemetry.adapter_metrics import AdapterMetrics
from coordinator.edge.telemetry.cluster_metrics import ClusterCollector
from coordinator.edge.telemetry.recent import RecentActivity
from protocol.finish import FinishReason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from coordinator.cluster.timeline import Segment
    from protocol.clock import Clock

TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
STAGE_BUCKETS = (0.0001, 0.0002, 0.0005, *TTFT_BUCKETS)
ITL_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
E2E_BUCKETS = (
    *(0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0),
    *(50.0, 60.0, 120.0, 240.0, 480.0, 960.0),
)
TOKEN_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
COUNT_BUCKETS = (1, 2, 3, 4, 5, 6, 7, 8)
LABELS = ("model_name", "engine")
REASONS = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT, FinishReason.ERROR)
PREFILL_STAGES = (Stage.PREFILL,)
QUEUE_STAGES = (Stage.QUEUE, Stage.PREFILL_QUEUE)
DECODE_STAGES = (Stage.DECODE_WAIT, Stage.EXPOSED_TRANSFER, Stage.FIRST_STEP, Stage.DECODE)


class Families:
    """Of one registry, each made once, whichever model asks for it; and what all models are counted in together."""

    def __init__(self, clock: Clock, version: str) -> None:
        self.registry = CollectorRegistry()
        self.recent = RecentActivity(clock)
        self.cluster = ClusterCollector()
        self.registry.register(self.cluster)
        ProcessCollector(registry=self.registry)
        Info("baton_build", "What serves", registry=self.registry).info({"version": version})
        self._made: dict[str, Counter | Histogram] = {}

    def counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        """The counter of that name."""
        made = self._made.get(name)
        if made is None:
            made = self._made[name] = Counter(name, text, labels, registry=self.registry)
        assert isinstance(made, Counter), name
        return made

    def histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> Histogram:
        """The histogram of that name."""
        made = self._made.get(name)
        if made is None:
            made = Histogram(name, text, labels, buckets=buckets, registry=self.registry)
            self._made[name] = made
        assert isinstance(made, Histogram), name
        return made


class EdgeMetrics:
    """One model's in one registry; methods are the events of a request's life as the edge sees it."""

    def __init__(
        self,
        model_name: str,
        cluster: Callable[[], dict[str, Any]],
        clock: Clock,
        version: str = "",
        families: Families | None = None,
    ) -> None:
        self.families = self._families = families or Families(clock, version)
        self.registry, self.recent = self._families.registry, self._families.recent
        self._families.cluster.add(model_name, cluster)
        self._labels = (model_name, "0")
        self.adapters = AdapterMetrics(self._families.counter, model_name)
        self._make_histograms()
        self._make_counters()

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return self._families.histogram(name, text, LABELS, buckets).labels(*self._labels)

    def _counter(self, name: str, text: str) -> Counter:
        return self._families.counter(name, text, LABELS).labels(*self._labels)

    def _make_histograms(self) -> None:
        make = self._histogram
        self._ttft = make("vllm:time_to_first_token_seconds", "Request to token", TTFT_BUCKETS)
        self._itl = make("vllm:inter_token_latency_seconds", "Token to token", ITL_BUCKETS)
        self._tpot = make(
            "vllm:request_time_per_output_token_seconds", "Mean over a request", ITL_BUCKETS
        )
        self._e2e = make("vllm:e2e_request_latency_seconds", "Request to end", E2E_BUCKETS)
        self._queue = make("vllm:request_queue_time_seconds", "Until prefill began", STAGE_BUCKETS)
        self._prefill = make("vllm:request_prefill_time_seconds", "Prefill", STAGE_BUCKETS)
        self._decode = make(
            "vllm:request_decode_time_seconds", "First token to last", STAGE_BUCKETS
        )
        self._inference = make(
            "vllm:request_inference_time_seconds", "Prefill and decode", STAGE_BUCKETS
        )
        self._make_sizes()
        self._stages = self._families.histogram(
            "baton_stage_duration_seconds",
            "Where choices that ended well spent their time: all stages sum to end-to-end",
            ("model_name", "stage", "role"),
            STAGE_BUCKETS,
        )

    def _make_sizes(self) -> None:
        make = self._histogram
        self._prompt_size = make("vllm:request_prompt_tokens", "Prompt size", TOKEN_BUCKETS)
        self._output_size = make("vllm:request_generation_tokens", "Output size", TOKEN_BUCKETS)
        self._computed_size = make(
            "vllm:request_prefill_kv_computed_tokens", "Prompt not in a cache", TOKEN_BUCKETS
        )
        self._max_tokens = make(
            "vllm:request_params_max_tokens", "max_tokens in force", TOKEN_BUCKETS
        )
        self._n = make("vllm:request_params_n", "Choices of a prompt", COUNT_BUCKETS)
        self._longest = make(
            "vllm:request_max_num_generation_tokens", "Longest choice", TOKEN_BUCKETS
        )

    def _make_counters(self) -> None:
        make = self._counter
        self._prompt_tokens = make("vllm:prompt_tokens", "Prompt tokens accepted")
        self._output_tokens = make("vllm:generation_tokens", "Tokens generated")
        self._queries = make("vllm:prefix_cache_queries", "Prompt tokens looked up in a cache")
        self._hits = make("vllm:prefix_cache_hits", "Prompt tokens found in a cache")
        self._cached = make("vllm:prompt_tokens_cached", "Prompt tokens that were not computed")
        self._success = self._families.counter(
            "vllm:request_success",
            "Choices that ended, by how: abort is a client that left, error a failure",
            (*LABELS, "finished_reason"),
        )
        for reason in REASONS:
            self._success.labels(*self._labels, reason)
        self._unfinished = make(
            "baton_unfinished_generation_tokens",
            "Tokens of choices that ended in abort or error; also in vllm:generation_tokens",
        )
        self._disconnects = make("baton_client_disconnects", "Clients that left early")
        self._refusals = self._families.counter(
            "baton_requests_rejected",
            "Requests answered with an error status",
            ("model_name", "status", "type"),
        )
        self._failures = self._families.counter(
            "baton_streams_failed",
            "Streams that ended with an error after their first token",
            ("model_name", "type"),
        )

    def started(self, num_prompt_tokens: int, num_choices: int, max_tokens: int) -> None:
        """A prompt was admitted, once for all its choices."""
        self._prompt_tokens.inc(num_prompt_tokens)
        self._prompt_size.observe(num_prompt_tokens)
        self.recent.started(num_prompt_tokens)
        self._n.observe(num_choices)
        self._max_tokens.observe(max_tokens)

    def first_token(self, seconds: float) -> None:
        """A choice has its first token, so long after the request came."""
        self._ttft.observe(seconds)
        self.recent.first_token(seconds)

    def inter_token(self, seconds: float, num_tokens: int) -> None:
        """`num_tokens` more came, all of them this long after the one before."""
        for _ in range(num_tokens):
            self._itl.observe(seconds / num_tokens)
        self.recent.inter_token(seconds, num_tokens)

    def generated(self, num_tokens: int) -> None:
        """Tokens came."""
        self._output_tokens.inc(num_tokens)
        self.recent.generated(num_tokens)

    def choice_ended(self, reason: FinishReason) -> None:
        """A choice ended, well or not."""
        self._success.labels(*self._labels, reason).inc()

    def unfinished(self, num_tokens: int) -> None:
        """Tokens that were generated for a choice that did not end well."""
        self._unfinished.inc(num_tokens)

    def longest(self, num_tokens: int) -> None:
        """Tokens of a prompt's longest choice."""
        self._longest.observe(num_tokens)

    def choice_finished(self, num_tokens: int, decode_s: float) -> None:
        """A choice ended well; `decode_s` is from its first token to its last."""
        self._output_size.observe(num_tokens)
        if num_tokens > 1:
            self._tpot.observe(decode_s / (num_tokens - 1))

    def prefix(self, num_prompt_tokens: int, num_cached_tokens: int) -> None:
        """How much of a prompt a cache held."""
        self._queries.inc(num_prompt_tokens)
        self._hits.inc(num_cached_tokens)
        self._cached.inc(num_cached_tokens)
        self._computed_size.observe(num_prompt_tokens - num_cached_tokens)

    def spent(self, segments: Sequence[Segment], e2e_s: float) -> None:
        """Where a choice that ended well spent its time; the segments sum to `e2e_s`."""
        spent_s: defaultdict[Stage, float] = defaultdict(float)
        by_role: defaultdict[tuple[Stage, str], float] = defaultdict(float)
        for segment in segments:
            spent_s[segment.stage] += segment.seconds
            by_role[(segment.stage, segment.role)] += segment.seconds
        for (stage, role), seconds in by_role.items():
            self._stages.labels(self._labels[0], stage, role).observe(seconds)
        prefill_s, decode_s = (
            sum(spent_s[stage] for stage in stages) for stages in (PREFILL_STAGES, DECODE_STAGES)
        )
        self._e2e.observe(e2e_s)
        self._queue.observe(sum(spent_s[stage] for stage in QUEUE_STAGES))
        self._prefill.observe(prefill_s)
        self._decode.observe(decode_s)
        self._inference.observe(prefill_s + decode_s)

    def disconnected(self) -> None:
        """A client left before its answer ended."""
        self._disconnects.inc()

    def rejected(self, status: int, kind: str) -> None:
        """A request was answered with an error status."""
        self._refusals.labels(self._labels[0], str(status), kind).inc()

    def stream_failed(self, kind: str) -> None:
        """A stream ended with an error event."""
        self._failures.labels(self._labels[0], kind).inc()

    def exposition(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

"""What the edge counts. Owns its Prometheus registry: the field's `vllm:` names and our own `baton_` ones.

Dashboards, routers and benchmarks of this field look for `vllm:` names, so those are exported where
the meaning is the same. Prompts never come near a label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest

from coordinator.cluster_metrics import ClusterCollector
from coordinator.recent import RecentActivity

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from engine.api.clock import Clock

TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
E2E_BUCKETS = (
    *(0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0),
    *(50.0, 60.0, 120.0, 240.0, 480.0, 960.0),
)
TOKEN_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
LABELS = ("model_name", "engine")


class EdgeMetrics:
    """One registry; methods are the events of a request's life as the edge sees it."""

    def __init__(
        self, model_name: str, cluster: Callable[[], dict[str, Any]], clock: Clock
    ) -> None:
        self.registry = CollectorRegistry()
        self.recent = RecentActivity(clock)
        self._labels = (model_name, "0")
        self.registry.register(ClusterCollector(model_name, cluster))
        self._make_histograms()
        self._make_counters()

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(name, text, LABELS, buckets=buckets, registry=self.registry)
        return family.labels(*self._labels)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, LABELS, registry=self.registry).labels(*self._labels)

    def _make_histograms(self) -> None:
        make = self._histogram
        self._ttft = make("vllm:time_to_first_token_seconds", "Request to token", TTFT_BUCKETS)
        self._itl = make("vllm:inter_token_latency_seconds", "Token to token", ITL_BUCKETS)
        self._tpot = make(
            "vllm:request_time_per_output_token_seconds", "Mean over a request", ITL_BUCKETS
        )
        self._e2e = make("vllm:e2e_request_latency_seconds", "Request to end", E2E_BUCKETS)
        self._prompt_size = make("vllm:request_prompt_tokens", "Prompt size", TOKEN_BUCKETS)
        self._output_size = make("vllm:request_generation_tokens", "Output size", TOKEN_BUCKETS)
        self._stages = Histogram(
            "baton_stage_duration_seconds",
            "Where requests spent their time, as the pools report it",
            ("model_name", "stage"),
            buckets=TTFT_BUCKETS,
            registry=self.registry,
        )

    def _make_counters(self) -> None:
        make = self._counter
        self._prompt_tokens = make("vllm:prompt_tokens", "Prompt tokens accepted")
        self._output_tokens = make("vllm:generation_tokens", "Tokens generated")
        self._queries = make("vllm:prefix_cache_queries", "Prompt tokens looked up in a cache")
        self._hits = make("vllm:prefix_cache_hits", "Prompt tokens found in a cache")
        self._success = Counter(
            "vllm:request_success",
            "Choices that ended well",
            (*LABELS, "finished_reason"),
            registry=self.registry,
        )
        self._disconnects = make("baton_client_disconnects", "Clients that left early")
        self._refusals = Counter(
            "baton_requests_rejected",
            "Requests answered with an error before their first token",
            ("model_name", "status", "type"),
            registry=self.registry,
        )
        self._failures = Counter(
            "baton_streams_failed",
            "Streams that ended with an error after their first token",
            ("model_name", "type"),
            registry=self.registry,
        )

    def started(self, num_prompt_tokens: int) -> None:
        """A request was admitted."""
        self._prompt_tokens.inc(num_prompt_tokens)
        self._prompt_size.observe(num_prompt_tokens)
        self.recent.started(num_prompt_tokens)

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

    def choice_finished(self, reason: str, num_tokens: int, decode_s: float) -> None:
        """A choice ended well; `decode_s` is from its first token to its last."""
        self._success.labels(*self._labels, reason).inc()
        self._output_size.observe(num_tokens)
        if num_tokens > 1:
            self._tpot.observe(decode_s / (num_tokens - 1))

    def prefix(self, num_prompt_tokens: int, num_cached_tokens: int) -> None:
        """How much of a prompt a cache held."""
        self._queries.inc(num_prompt_tokens)
        self._hits.inc(num_cached_tokens)

    def finished(self, seconds: float) -> None:
        """A request ended with all its choices."""
        self._e2e.observe(seconds)

    def stage(self, name: str, seconds: float) -> None:
        """One span that the pools reported."""
        self._stages.labels(self._labels[0], name.removesuffix("_s")).observe(seconds)

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

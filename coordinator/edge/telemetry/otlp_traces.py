"""Finished requests as OpenTelemetry traces over OTLP/HTTP. Owns span names, attributes and who is a span's parent.

    the client's span ─► chat MODEL                        coordinator, SERVER
                           ├ tokenize, queue, deliver      coordinator
                           ├ prefill_queue, prefill        prefill-0
                           └ decode_wait, exposed_transfer, first_step, decode     decode-0

A trace is built when its request is over, from the segments of `coordinator.cluster.timeline`: workers
report durations and have no tracer of their own, so the spans of one trace never disagree about the
time. Each worker is a resource of its own. A request with several choices has a span for each
between the root and the stages. Prompts and answers are never in a span.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.status import Status, StatusCode

from coordinator.cluster.timeline import COORDINATOR, Stage
from coordinator.edge.telemetry.trace_attributes import choice_attributes, request_attributes
from protocol.clock import wall_time_s

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

    from coordinator.edge.telemetry.choice_meter import ChoiceMeter
    from coordinator.edge.telemetry.request_record import RequestRecord
    from protocol.clock import Clock

CLOSE_WAIT_S = 1.0
NS = 1_000_000_000


class OtlpTraces:
    """A TraceSink whose spans leave in batches, from a thread: no request waits for the collector."""

    def __init__(self, endpoint: str, clock: Clock) -> None:
        self._clock = clock
        self._exporter = OTLPSpanExporter(endpoint=endpoint)
        self._processor = BatchSpanProcessor(self._exporter)
        self._tracers: dict[tuple[str, str], Tracer] = {}
        self._propagator = TraceContextTextMapPropagator()
        named = str(Resource.create().attributes[SERVICE_NAME])
        self._service = "baton" if named.startswith("unknown_service") else named

    def _tracer(self, role: str, worker: str) -> Tracer:
        """The tracer of a process: one resource a worker, one batch for all."""
        known = self._tracers.get((role, worker))
        if known is None:
            attributes = {
                SERVICE_NAME: f"{self._service}-{role}",
                SERVICE_INSTANCE_ID: worker or role,
            }
            provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
            provider.add_span_processor(self._processor)
            known = self._tracers[(role, worker)] = provider.get_tracer("baton")
        return known

    def record(self, record: RequestRecord) -> None:
        """Make the spans of a finished request."""
        facts = record.facts
        origin_ns = int((wall_time_s() - self._clock.now_s() + facts.arrival_s) * NS)
        root = self._tracer(COORDINATOR, "").start_span(
            f"{facts.operation} {facts.model}",
            context=self._propagator.extract(facts.headers),
            kind=SpanKind.SERVER,
            attributes=request_attributes(record),
            start_time=origin_ns,
        )
        inside = set_span_in_context(root)
        if len(record.choices) == 1:
            self._stages(record.choices[0], inside, origin_ns)
        else:
            for index, choice in enumerate(record.choices):
                self._choice(index, choice, inside, origin_ns)
        if record.error is not None:
            root.set_status(Status(StatusCode.ERROR, record.error))
        root.end(origin_ns + int((record.end_s - facts.arrival_s) * NS))

    def _choice(self, index: int, choice: ChoiceMeter, parent: Context, origin_ns: int) -> None:
        span = self._tracer(COORDINATOR, "").start_span(
            f"choice {index}",
            context=parent,
            attributes={"baton.choice.index": index, **choice_attributes(choice)},
            start_time=origin_ns,
        )
        self._stages(choice, set_span_in_context(span), origin_ns)
        span.end(origin_ns + int((choice.end_s - choice.arrival_s) * NS))

    def _stages(self, choice: ChoiceMeter, parent: Context, origin_ns: int) -> None:
        """One span a segment, each beginning where the one before it ended."""
        passed_s = 0.0
        for segment in choice.segments():
            if segment.seconds > 0:
                attributes = choice_attributes(choice) if segment.stage is Stage.DECODE else {}
                if segment.stage is Stage.EXPOSED_TRANSFER:
                    attributes = {"baton.transfer.bytes": choice.timeline.transfer_bytes}
                span = self._tracer(segment.role, segment.worker).start_span(
                    segment.stage.value,
                    context=parent,
                    attributes=attributes,
                    start_time=origin_ns + int(passed_s * NS),
                )
                span.end(origin_ns + int((passed_s + segment.seconds) * NS))
            passed_s += segment.seconds

    def close(self) -> None:
        """Send what waits, but give up on a collector that does not take it within a second."""
        closer = threading.Thread(target=self._processor.shutdown, daemon=True)
        closer.start()
        closer.join(CLOSE_WAIT_S)
        if closer.is_alive():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]

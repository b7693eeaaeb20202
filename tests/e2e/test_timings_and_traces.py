"""Where one request's time went: in the answer, and as one trace at a real OTLP/HTTP collector."""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.otlp_receiver import Received, Receiver
from tests.e2e.server import MOCK, PACED, Server, free_port
from tests.patience import PATIENCE_S, in_time, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
MODEL = "smollm2-135m"
SMALL = ("--kv-cache-memory", "256MiB")
LONG = {"model": MODEL, "max_tokens": 64, "ignore_eos": True, "prompt": "tide " * 200}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with pytest.MonkeyPatch.context() as patch, Receiver() as receiver:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")  # the SDK's own variables reach it
        yield receiver


@pytest.fixture(scope="module")
def server(receiver: Receiver) -> Iterator[Server]:
    arguments = ("--pd", "1p1d", "--otlp-traces-endpoint", receiver.endpoint, *SMALL)
    with Server(*arguments, program=MOCK) as server:
        yield server


def traceparent() -> tuple[dict[str, str], str, str]:
    """(header, trace id, span id) of a client's span."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return {"traceparent": f"00-{trace_id}-{span_id}-01"}, trace_id, span_id


def check_sum(timings: dict[str, Any]) -> None:
    assert sum(timings["spans_ms"].values()) == pytest.approx(timings["e2e_ms"], abs=0.02)


HOPS, USUAL_HOP_MS = 10, 0.2
"""Processes that an answer passes are woken so often; on a machine without other work that takes less."""


def hop_ms() -> float:
    """From one process to another and back, as it is just now."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as cat:
        assert cat.stdin is not None
        assert cat.stdout is not None
        taken_s = []
        for _ in range(30):
            started_s = time.perf_counter()
            cat.stdin.write(b"x")
            assert cat.stdout.read(1) == b"x"
            taken_s.append(time.perf_counter() - started_s)
        cat.stdin.close()
    return 1000 * statistics.mean(taken_s)


@pytest.mark.alone
def test_spans_of_a_real_answer_sum_and_little_is_unexplained() -> None:
    """The real engine: compute dominates, and what no report explains is under 1 % or 2 ms."""
    with Server("--pd", "1p1d", *SMALL) as real:
        numbers = itertools.count()

        def attempt() -> float:
            """What is unexplained, and what the client waited besides, as shares of what they may be."""
            body = LONG | {"prompt": f"{next(numbers)} {LONG['prompt']}", "max_tokens": 24}
            started_s = time.perf_counter()
            timings = real.complete(**body, return_timings=True)["baton"]
            client_ms = (time.perf_counter() - started_s) * 1000
            check_sum(timings)
            spans = timings["spans_ms"]
            assert timings["e2e_ms"] < client_ms
            assert spans["prefill"] > 10
            assert spans["decode"] > 10
            assert spans["exposed_transfer"] > 0
            assert timings["transfer_bytes"] > 0
            assert (timings["prefill_worker"], timings["decode_worker"]) == (
                "prefill-0",
                "decode-0",
            )
            waits_ms = HOPS * max(0.0, hop_ms() - USUAL_HOP_MS)
            unexplained = (spans["control"] - waits_ms) / max(2.0, 0.01 * timings["e2e_ms"])
            unseen = (client_ms - timings["e2e_ms"] - waits_ms) / max(20.0, 0.05 * client_ms)
            return float(max(unexplained, unseen))

        in_time(attempt, 1.0, attempts=8)


def test_official_clients_are_not_disturbed(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        asked: Any = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 8,
            "extra_body": {"return_timings": True, "ignore_eos": True},
        }
        whole = client.chat.completions.create(**asked)
        assert whole.usage.completion_tokens == 8
        check_sum(whole.model_extra["baton"])
        chunks = list(client.chat.completions.create(**asked, stream=True))
        check_sum(chunks[-1].model_extra["baton"])


def test_trace_is_one_tree_under_the_client(server: Server, receiver: Receiver) -> None:
    headers, trace_id, span_id = traceparent()
    reply = server.client.post(
        "/v1/completions", json=LONG | {"return_timings": True}, headers=headers
    )
    timings, spans = reply.json()["baton"], receiver.trace(trace_id)
    (root,) = [span for span in spans if span.kind == 2]
    stages = [span for span in spans if span is not root]
    assert receiver.paths == {"/v1/traces"}
    assert root.parent_id == span_id
    assert {span.parent_id for span in stages} == {root.span_id}
    assert len({span.span_id for span in spans}) == len(spans)
    assert root.name == f"text_completion {MODEL}"
    check_durations(root, stages, timings)
    services = {span.name: span.resource["service.name"] for span in stages}
    assert services["queue"] == "baton-coordinator"
    assert services["prefill"] == "baton-prefill"
    assert services["decode"] == "baton-decode"
    workers = {span.name: span.resource["service.instance.id"] for span in stages}
    assert workers["prefill"] == "prefill-0"
    assert workers["decode"] == "decode-0"
    assert workers.get("exposed_transfer", "decode-0") == "decode-0", "hidden where it was quick"


def check_durations(root: Received, stages: list[Received], timings: dict[str, Any]) -> None:
    """Consecutive, as long as the answer says, and together as long as the root."""
    for before, after in pairwise(sorted(stages, key=lambda span: span.start_ns)):
        assert abs(after.start_ns - before.end_ns) < 10_000
    told: dict[str, float] = {}
    for span in stages:
        told[span.name] = told.get(span.name, 0.0) + span.seconds * 1000
    for name, value in timings["spans_ms"].items():
        assert told.get(name, 0.0) == pytest.approx(value, abs=0.01)
    assert sum(told.values()) == pytest.approx(root.seconds * 1000, rel=0.01, abs=2)


def test_root_has_the_conventions_attributes(server: Server, receiver: Receiver) -> None:
    headers, trace_id, _ = traceparent()
    body = {"model": MODEL, "max_tokens": 7, "ignore_eos": True, "temperature": 0.5, "top_p": 0.75}
    messages = [{"role": "user", "content": "secret words"}]
    reply = server.client.post(
        "/v1/chat/completions",
        json=body | {"messages": messages, "n": 2},
        headers=headers | {"x-request-id": "mine"},
    ).json()
    spans = receiver.trace(trace_id)
    (root,) = [span for span in spans if span.kind == 2]
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "baton",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": MODEL,
        "gen_ai.response.id": reply["id"],
        "gen_ai.request.id": "mine",
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.75,
        "gen_ai.request.choice.count": 2,
        "gen_ai.usage.input_tokens": reply["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": 14,
        "gen_ai.response.finish_reasons": ["length", "length"],
    }
    assert expected == {name: root.attributes.get(name) for name in expected}
    assert root.attributes["gen_ai.latency.e2e"] == pytest.approx(root.seconds, abs=1e-4)
    assert "secret" not in repr(spans)
    choices = [span for span in spans if span.name.startswith("choice")]
    assert {span.parent_id for span in choices} == {root.span_id}
    assert {s.parent_id for s in spans if s.name == "decode"} == {s.span_id for s in choices}


def test_client_that_leaves_is_an_error_in_its_trace(server: Server, receiver: Receiver) -> None:
    headers, trace_id, _ = traceparent()
    body = LONG | {"stream": True, "max_tokens": 4000}
    with server.client.stream("POST", "/v1/completions", json=body, headers=headers) as reply:
        next(reply.iter_lines())
    (root,) = [span for span in receiver.trace(trace_id) if span.kind == 2]
    assert root.is_error
    assert root.attributes["error.type"] == "client_disconnected"


def test_an_untraced_parent_is_not_sampled(server: Server, receiver: Receiver) -> None:
    headers, unsampled, _ = traceparent()
    headers["traceparent"] = headers["traceparent"][:-1] + "0"
    server.client.post("/v1/completions", json=LONG, headers=headers)
    headers, later, _ = traceparent()
    server.client.post("/v1/completions", json=LONG, headers=headers)
    receiver.trace(later)
    assert unsampled not in {span.trace_id for span in receiver.spans}


def test_replayed_request_adds_up_and_says_so(receiver: Receiver) -> None:
    arguments = ("--pd", "1p2d", "--otlp-traces-endpoint", receiver.endpoint, *SMALL)
    with Server(*arguments, program=PACED) as server:
        headers, trace_id, _ = traceparent()
        answers: list[dict[str, Any]] = []

        def ask() -> None:
            body = LONG | {"max_tokens": 80, "return_timings": True}
            reply = httpx.post(
                f"{server.url}/v1/completions", json=body, headers=headers, timeout=PATIENCE_S
            )
            answers.append(reply.json())

        def writer() -> list[int]:
            """The pid of who writes the answer."""
            workers = server.cluster()["workers"]
            writing = [w for w in workers if w["role"] == "decode" and w["requests"]["running"]]
            return [worker["pid"] for worker in writing]

        until(lambda: not writer(), "the end of what workers were tried with")
        asking = threading.Thread(target=ask)
        asking.start()
        found: list[int] = []

        def is_written() -> bool:
            found[:] = writer()
            return bool(found)

        until(is_written, "the answer being written")
        os.kill(found[0], signal.SIGKILL)
        asking.join()
        timings = answers[0]["baton"]
        check_sum(timings)
        assert timings["replays"] == 1
        assert timings["spans_ms"]["replay"] > 0
        spans = receiver.trace(trace_id)
        assert len([span for span in spans if span.name == "prefill"]) == 2
        assert [span for span in spans if span.name == "replay"]


@pytest.mark.alone
def test_a_silent_collector_delays_nothing_and_stops_in_time() -> None:
    arguments = ("--otlp-traces-endpoint", f"http://127.0.0.1:{free_port()}", *SMALL)

    def attempt() -> float:
        with Server(*arguments, program=MOCK) as server:
            for _ in range(5):
                server.complete(**LONG)
            server.client.close()
            return server.interrupt()

    in_time(attempt, 3.0)

"""A thousand requests of every kind, and `/metrics` says exactly what their clients counted."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.server import MOCK, Server
from tests.patience import PATIENCE_S, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
MODEL = "smollm2-135m"
NUM_REQUESTS = 1000
ROLE_CHUNK = {"messages": [{"role": "user", "content": "Say something."}]}


class Tally:
    """What clients got, by name; safe to add to from several threads."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, **amounts: int) -> None:
        with self._lock:
            self.counts.update(amounts)

    def __getitem__(self, name: str) -> int:
        return self.counts[name]


class Client:
    """One request of a chosen kind, counted as a client would."""

    def __init__(self, http: httpx.Client, tally: Tally, index: int) -> None:
        self.http, self.tally, self.index = http, tally, index
        self.rng = random.Random(index)

    def run(self) -> None:
        kinds: list[Callable[[], None]] = [
            *(self.whole, self.whole_with_shared_prefix, self.chat, self.streamed),
            *(self.streamed_with_usage, self.several_choices, self.several_prompts),
            *(self.stopped_by_a_string, self.one_token, self.leaves, self.refused),
        ]
        kinds[self.index % len(kinds)]()

    def prompt(self, length: int) -> list[int]:
        """Token ids that no other request has."""
        tail = [self.rng.randrange(100, 49_000) for _ in range(length - 2)]
        return [100 + self.index // 200, 100 + self.index % 200, *tail]

    def body(self, **more: Any) -> dict[str, Any]:
        sizes = {"max_tokens": self.rng.randrange(2, 24), "seed": self.index}
        return {"model": MODEL, "prompt": self.prompt(12), **sizes, **more}

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self.http.post(path, json=body)

    def finished(self, reply: httpx.Response, choices: int = 1, prompts: int = 1) -> None:
        """Count a whole answer, or a refusal for want of room."""
        if reply.status_code != 200:
            self.tally.add(**{f"status_{reply.status_code}": 1})
            assert reply.status_code == 429, reply.text
            return
        answer = reply.json()
        usage = answer["usage"]
        assert len(answer["choices"]) == choices * prompts
        self.tally.add(
            prompts=prompts,
            choices=choices * prompts,
            prompt_tokens=usage["prompt_tokens"],
            looked_up=usage["prompt_tokens"],
            shared=usage["prompt_tokens"] * (choices - 1),
            output_tokens=usage["completion_tokens"],
            cached=usage["prompt_tokens_details"]["cached_tokens"],
        )
        self.tally.add(**Counter("ended_" + c["finish_reason"] for c in answer["choices"]))

    def whole(self) -> None:
        self.finished(self.post("/v1/completions", self.body(prompt=self.prompt(70))))

    def whole_with_shared_prefix(self) -> None:
        shared = list(range(1000, 1064))
        body = self.body(prompt=[*shared, *self.prompt(5)])
        self.finished(self.post("/v1/completions", body))

    def chat(self) -> None:
        body = self.body(**ROLE_CHUNK)
        del body["prompt"]
        self.finished(self.post("/v1/chat/completions", body))

    def several_choices(self) -> None:
        choices = self.rng.randrange(2, 5)
        self.finished(self.post("/v1/completions", self.body(n=choices)), choices)

    def several_prompts(self) -> None:
        prompts = [self.prompt(20), self.prompt(9)[::-1], self.prompt(33)[::-1]]
        self.finished(self.post("/v1/completions", self.body(prompt=prompts)), prompts=3)

    def stopped_by_a_string(self) -> None:
        body = self.body(stop=["e", "a"], max_tokens=60)
        self.finished(self.post("/v1/completions", body))

    def one_token(self) -> None:
        self.finished(self.post("/v1/completions", self.body(max_tokens=1)))

    def events(self, reply: httpx.Response) -> Iterator[dict[str, Any]]:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))

    def streamed(self) -> None:
        """Without usage: the client counts the ids that it is given."""
        body = self.body(stream=True, return_token_ids=True)
        with self.http.stream("POST", "/v1/completions", json=body) as reply:
            if reply.status_code == 429:
                self.tally.add(status_429=1)
                return
            choices = [event["choices"][0] for event in self.events(reply)]
        tokens = sum(len(choice["token_ids"]) for choice in choices)
        self.tally.add(prompts=1, choices=1, prompt_tokens=12, looked_up=12, output_tokens=tokens)
        self.tally.add(**{"ended_" + choices[-1]["finish_reason"]: 1})

    def streamed_with_usage(self) -> None:
        body = self.body(stream=True, stream_options={"include_usage": True})
        with self.http.stream("POST", "/v1/completions", json=body) as reply:
            if reply.status_code == 429:
                self.tally.add(status_429=1)
                return
            *chunks, last = self.events(reply)
        tokens = last["usage"]["completion_tokens"]
        self.tally.add(prompts=1, choices=1, prompt_tokens=12, looked_up=12, output_tokens=tokens)
        self.tally.add(**{"ended_" + chunks[-1]["choices"][0]["finish_reason"]: 1})

    def leaves(self) -> None:
        """In the middle of an answer that is far from its end."""
        body = self.body(stream=True, max_tokens=8000, ignore_eos=True)
        patience = self.rng.randrange(1, 12)
        with self.http.stream("POST", "/v1/completions", json=body) as reply:
            if reply.status_code == 429:
                self.tally.add(status_429=1)
                return
            for number, _ in enumerate(self.events(reply), 1):
                if number == patience:
                    break
        self.tally.add(left=1, prompts=1, prompt_tokens=12, looked_up=12, seen_by_leavers=patience)

    def refused(self) -> None:
        wrong: list[tuple[str, dict[str, Any]]] = [
            ("/v1/completions", self.body(temperature=9)),
            ("/v1/completions", self.body(model="another")),
            ("/v1/completions", self.body(n=99)),
            ("/v1/nothing", self.body()),
            ("/v1/chat/completions", self.body(messages=[])),
            ("/v1/completions", self.body(prompt=[1] * 9000)),
        ]
        reply = self.post(*self.rng.choice(wrong))
        assert 400 <= reply.status_code < 429, reply.text
        self.tally.add(**{f"status_{reply.status_code}": 1})


class Exposition:
    """One answer of `/metrics`."""

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)
        self.samples = [sample for family in families for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """Sum over the series that have these labels; the name must exist."""
        named = [sample for sample in self.samples if sample.name == name]
        assert named, name
        return sum(s.value for s in named if labels.items() <= s.labels.items())


def settled(server: Server) -> Exposition:
    """`/metrics` with the workers' own figures of now."""
    server.await_heartbeats()
    return Exposition(server.client.get("/metrics").text)


@pytest.fixture(scope="module")
def run() -> Iterator[tuple[Tally, Exposition]]:
    tally = Tally()
    with Server("--pd", "1p1d", "--kv-cache-memory", "512MiB", program=MOCK) as server:
        limits = httpx.Limits(max_connections=32)
        probed = settled(server).total("baton_worker_prefill_tokens_total", role="prefill")
        tally.add(probed=int(probed))
        with (
            httpx.Client(base_url=server.url, timeout=PATIENCE_S, limits=limits) as http,
            ThreadPoolExecutor(16) as pool,
        ):
            list(pool.map(lambda i: Client(http, tally, i).run(), range(NUM_REQUESTS)))
        until(lambda: server.cluster()["requests"]["live"] == 0, "the end of all requests")
        yield tally, settled(server)


def test_all_kinds_happened(run: tuple[Tally, Exposition]) -> None:
    tally, _ = run
    assert min(tally["left"], tally["status_400"], tally["status_404"]) > 5
    assert min(tally["ended_stop"], tally["ended_length"], tally["cached"]) > 20


def test_token_counters_are_what_clients_counted(run: tuple[Tally, Exposition]) -> None:
    tally, told = run
    unfinished = told.total("baton_unfinished_generation_tokens_total")
    assert told.total("vllm:generation_tokens_total") - unfinished == tally["output_tokens"]
    assert unfinished >= tally["seen_by_leavers"]
    assert told.total("vllm:prompt_tokens_total") == tally["prompt_tokens"]
    assert told.total("vllm:request_prompt_tokens_sum") == tally["prompt_tokens"]
    assert told.total("vllm:request_generation_tokens_sum") == tally["output_tokens"]


def test_every_end_is_counted_by_its_reason(run: tuple[Tally, Exposition]) -> None:
    tally, told = run
    name = "vllm:request_success_total"
    assert told.total(name, finished_reason="stop") == tally["ended_stop"]
    assert told.total(name, finished_reason="length") == tally["ended_length"]
    assert told.total(name, finished_reason="abort") == tally["left"]
    assert told.total(name, finished_reason="error") == 0
    assert told.total("baton_client_disconnects_total") == tally["left"]


@pytest.mark.parametrize("status", ["400", "404", "429"])
def test_every_refusal_is_counted_by_its_status(run: tuple[Tally, Exposition], status: str) -> None:
    tally, told = run
    assert told.total("baton_requests_rejected_total", status=status) == tally[f"status_{status}"]


def test_histograms_count_choices_tokens_and_prompts(run: tuple[Tally, Exposition]) -> None:
    tally, told = run
    for name in (
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_inference_time_seconds",
        "request_generation_tokens",
    ):
        assert told.total(f"vllm:{name}_count") == tally["choices"], name
    begun = tally["choices"] + tally["left"]
    generated = told.total("vllm:generation_tokens_total")
    assert told.total("vllm:time_to_first_token_seconds_count") == begun
    assert told.total("vllm:inter_token_latency_seconds_count") == generated - begun
    for name in ("request_params_n", "request_params_max_tokens", "request_prompt_tokens"):
        assert told.total(f"vllm:{name}_count") == tally["prompts"], name
    assert told.total("vllm:request_params_n_sum") == begun
    assert told.total("vllm:request_max_num_generation_tokens_count") == tally["prompts"]


def test_prefix_cache_counters_are_what_usage_said(run: tuple[Tally, Exposition]) -> None:
    tally, told = run
    assert told.total("vllm:prefix_cache_hits_total") == tally["cached"]
    assert told.total("vllm:prompt_tokens_cached_total") == tally["cached"]
    assert told.total("vllm:prefix_cache_queries_total") == tally["looked_up"]
    computed = told.total("vllm:request_prefill_kv_computed_tokens_sum")
    assert computed == tally["looked_up"] - tally["cached"]


def test_stages_sum_to_end_to_end(run: tuple[Tally, Exposition]) -> None:
    _, told = run
    stages = told.total("baton_stage_duration_seconds_sum")
    assert stages == pytest.approx(told.total("vllm:e2e_request_latency_seconds_sum"), rel=1e-6)


def test_workers_computed_what_was_asked(run: tuple[Tally, Exposition]) -> None:
    """Every prompt but its cached part once, on whichever worker, and every token after the first on decode."""
    tally, told = run
    generated = told.total("vllm:generation_tokens_total")
    begun = tally["choices"] + tally["left"]
    prefilled = told.total("baton_worker_prefill_tokens_total")
    once = tally["looked_up"] - tally["cached"] + tally["probed"]
    assert once <= prefilled <= once + tally["shared"], "choices may compute a prompt side by side"
    assert told.total("baton_worker_decode_tokens_total") >= generated - begun
    assert told.total("baton_worker_transfers_total", role="decode") > 0
    steps = told.total("vllm:iteration_tokens_total_count")
    assert steps == told.total("baton_worker_steps_total")
    computed = ("baton_worker_prefill_tokens_total", "baton_worker_decode_tokens_total")
    assert told.total("vllm:iteration_tokens_total_sum") == sum(map(told.total, computed))


def test_gauges_are_empty_when_all_is_done(run: tuple[Tally, Exposition]) -> None:
    _, told = run
    assert told.total("vllm:num_requests_running") == 0
    assert told.total("vllm:num_requests_waiting") == 0
    assert told.total("vllm:num_requests_waiting_by_reason") == 0
    assert told.total("vllm:kv_cache_usage_perc") == 0
    assert told.total("baton_kv_blocks", state="held") == 0


@pytest.mark.deep
def test_refusals_for_want_of_room_are_counted_and_change_nothing_else() -> None:
    """More clients than room: 429s, of single requests and of one choice among several."""
    tally = Tally()
    small = ("--max-num-seqs", "2", "--max-queued-requests", "2", "--kv-cache-memory", "256MiB")
    with Server("--pd", "1p1d", *small, program=MOCK) as server:
        with (
            httpx.Client(base_url=server.url, timeout=PATIENCE_S) as http,
            ThreadPoolExecutor(16) as pool,
        ):
            clients = [Client(http, tally, index) for index in range(200)]
            list(pool.map(lambda c: (c.several_choices, c.streamed)[c.index % 2](), clients))
        told = settled(server)
    assert tally["status_429"] > 0
    assert told.total("baton_requests_rejected_total", status="429") == tally["status_429"]
    assert told.total("vllm:generation_tokens_total") == tally["output_tokens"]
    assert told.total("vllm:prompt_tokens_total") == tally["prompt_tokens"]
    assert told.total("vllm:request_success_total") == tally["choices"]
    assert told.total("baton_requests_live") == 0

"""Streams that outlive their connection, from real processes: the rest is exact, whoever left, came back or died."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.server import PACED, Server
from tests.marks import deep

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
HEADERS = {"X-Baton-Resumable": "1"}
ASKED = {"prompt": "Once upon a time", "max_tokens": 20, "ignore_eos": True, "seed": 3}
CHAT, COMPLETION, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
LEFT_AFTER = (1, 7, 19)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--pd", "1p1d", program=PACED) as serving:
        yield serving


def body_of(path: str) -> dict[str, Any]:
    if path == CHAT:
        messages = [{"role": "user", "content": ASKED["prompt"]}]
        asked = {key: value for key, value in ASKED.items() if key != "prompt"}
        return {**asked, "messages": messages, "stream": True}
    return {**ASKED, "stream": True}


def events(server: Server, path: str, headers: dict[str, str], most: int) -> list[tuple[str, str]]:
    """(id, data) of at most so many events; then the connection is closed."""
    found: list[tuple[str, str]] = []
    event_id = ""
    body = {} if "Last-Event-ID" in headers else body_of(path)
    with server.client.stream("POST", path, json=body, headers=headers) as stream:
        assert stream.status_code == 200, stream.read()
        for line in stream.iter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                event_id = value
            elif name == "data":
                found.append((event_id, value))
                if len(found) == most:
                    return found
    return found


def text_of(found: list[tuple[str, str]]) -> str:
    choices = [c for _, data in found if data != "[DONE]" for c in json.loads(data)["choices"]]
    return "".join(c.get("text") or c.get("delta", {}).get("content") or "" for c in choices)


@pytest.mark.parametrize("path", [CHAT, deep(COMPLETION)])
def test_the_rest_of_a_stream_is_what_was_missed(server: Server, path: str) -> None:
    whole = text_of(events(server, path, {}, 1000))
    for left_after in LEFT_AFTER:
        first = events(server, path, HEADERS, left_after)
        rest = events(server, path, {"Last-Event-ID": first[-1][0]}, 1000)
        again = events(server, path, {"Last-Event-ID": first[-1][0]}, 1000)
        assert rest == again
        assert rest[-1][1] == "[DONE]"
        assert text_of([*first, *rest]) == whole
        ids = [event_id for event_id, _ in [*first, *rest]]
        assert len(set(ids)) == len(ids)


def test_several_may_read_the_rest_at_once(server: Server) -> None:
    first = events(server, COMPLETION, HEADERS, 4)
    headers = {"Last-Event-ID": first[1][0]}
    with ThreadPoolExecutor(4) as pool:
        rests = list(pool.map(lambda _: events(server, COMPLETION, headers, 1000), range(4)))
    assert all(rest == rests[0] for rest in rests)
    assert rests[0][:2] == first[2:]


def test_a_worker_that_dies_while_nobody_reads_changes_nothing(server: Server) -> None:
    whole = text_of(events(server, COMPLETION, {}, 1000))
    for role in ("decode", "prefill"):
        server.await_pair()
        first = events(server, COMPLETION, HEADERS, 3)
        os.kill(server.worker(role)["pid"], signal.SIGKILL)
        rest = events(server, COMPLETION, {"Last-Event-ID": first[-1][0]}, 1000)
        assert text_of([*first, *rest]) == whole


def test_a_response_in_the_background_is_read_on_by_its_numbers(server: Server) -> None:
    asked = {"input": "Once upon a time", "max_output_tokens": 16, "background": True}
    told: list[dict[str, Any]] = []
    with server.client.stream("POST", RESPONSES, json={**asked, "stream": True}) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                told.append(json.loads(line[6:]))
            if len(told) == 6:
                break
    response_id, number = told[0]["response"]["id"], told[-1]["sequence_number"]
    query = f"stream=true&starting_after={number}"
    reply = server.client.get(f"{RESPONSES}/{response_id}?{query}")
    lines = [line for line in reply.text.splitlines() if line.startswith("data: ")]
    told += [json.loads(line[6:]) for line in lines]
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    deltas = [e["delta"] for e in told if e["type"] == "response.output_text.delta"]
    final = told[-1]["response"]
    assert "".join(deltas) == final["output"][0]["content"][0]["text"]
    assert server.client.get(f"{RESPONSES}/{response_id}").json()["status"] == final["status"]


def test_a_stream_that_never_was_is_not_found(server: Server) -> None:
    headers = {"Last-Event-ID": "cmpl-none:3"}
    reply = server.client.post(COMPLETION, json={}, headers=headers)
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "stream_not_found"
    assert server.audit()["balanced"]

"""What is recorded of a request that ends, however it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from coordinator.accounts.booking import Departure
from coordinator.cluster.scripted_service import say
from coordinator.cluster.service_api import StreamEvent
from coordinator.edge.answers import generation_run
from coordinator.edge.app import create_app
from coordinator.edge.http.side_work import LoopTurns
from protocol.errors import DeadlineExceeded, Overloaded
from protocol.sampling import SampledToken


class Records(list):
    """A TraceSink that keeps what it is told."""

    def record(self, record) -> None:
        self.append(record)

    def close(self) -> None: ...


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
def app(service, served_model, clock, records):
    return create_app(service=service, model=served_model, clock=clock, traces=records)


async def complete(client, **fields):
    return await client.post("/v1/completions", json={"prompt": "Hello"} | fields)


async def total(client, name, **labels):
    lines = (await client.get("/metrics")).text.splitlines()
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    found = [line for line in lines if line.startswith(name) and all(w in line for w in wanted)]
    return sum(float(line.split()[-1]) for line in found)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_recorded_once(client, service, records, stream):
    service.default = say([5, 6, 7])
    await complete(client, stream=stream)
    (record,) = records
    assert record.error is None
    assert [choice.finish_reason for choice in record.choices] == ["length"]


async def test_a_refused_request_is_recorded_without_choices_counted(client, service, records):
    service.refusal = Overloaded("full", 1.0)
    await complete(client)
    assert records[0].error == Overloaded.error_type
    assert await total(client, "vllm:request_success_total") == 0


async def test_who_leaves_before_its_turn_left_and_was_not_refused(app, records, monkeypatch):
    """Many choices wait for a turn of the loop before they are admitted."""
    waits = asyncio.Event()

    async def turn(_):
        waits.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(generation_run, "MOST_AT_ONCE", 0)
    monkeypatch.setattr(LoopTurns, "turn", turn)
    asked = iter([{"type": "http.request", "body": b'{"prompt": "Hello"}'}])

    async def receive():
        if (message := next(asked, None)) is not None:
            return message
        await waits.wait()
        return {"type": "http.disconnect"}

    async def send(message): ...

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"",
        "headers": [(b"host", b"edge"), (b"content-type", b"application/json")],
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "client": ("127.0.0.1", 1),
        "server": ("edge", 80),
    }
    await app(scope, receive, send)
    assert [record.error for record in records] == [Departure.DISCONNECTED]


async def test_a_failed_stream_ends_as_error(client, service, records):
    token = SampledToken(token_id=50)
    service.default = [
        StreamEvent(tokens=[token]),
        StreamEvent(error=DeadlineExceeded("too late")),
    ]
    await complete(client, stream=True)
    assert records[0].error == DeadlineExceeded.error_type
    assert await total(client, "vllm:request_success_total", finished_reason="error") == 1
    assert await total(client, "baton_unfinished_generation_tokens_total") == 1


async def test_a_client_that_leaves_ends_as_abort(app, service, records):
    service.default = say([5, 6], None)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "path": "/v1/completions",
            "headers": [],
        }
        scope |= {"query_string": b"", "server": ("edge", 80), "scheme": "http", "app": app}
        body = {"type": "http.request", "body": b'{"prompt": "Hello"}', "more_body": False}
        messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        messages.put_nowait(body)

        async def send(_) -> None: ...

        answering = asyncio.create_task(app(scope, messages.get, send))
        while not service.streams:
            await asyncio.wait({answering}, timeout=0.01)
        messages.put_nowait({"type": "http.disconnect"})
        await answering
        assert records[0].error == "client_disconnected"
        assert await total(client, "vllm:request_success_total", finished_reason="abort") == 1


async def test_several_prompts_with_several_choices_are_counted_as_usage_counts(client, service):
    service.default = say([5, 6, 7])
    usage = (await complete(client, prompt=["one", "two three"], n=2)).json()["usage"]
    assert await total(client, "vllm:prompt_tokens_total") == usage["prompt_tokens"]
    assert await total(client, "vllm:generation_tokens_total") == usage["completion_tokens"] == 12
    assert await total(client, "vllm:request_params_n_count") == 2
    assert await total(client, "vllm:request_params_n_sum") == 4

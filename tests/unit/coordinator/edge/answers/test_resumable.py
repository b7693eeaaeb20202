"""Streams that ask to outlive their connection: the exact rest for whoever comes back in time, and for nobody else."""

from __future__ import annotations

import asyncio

import httpx
import orjson
import pytest

from coordinator.cluster.scripted_service import IteratedStream, ScriptedService, say
from coordinator.cluster.service_api import StreamEvent
from coordinator.cluster.timeline import Timeline
from coordinator.edge.app import create_app
from protocol.errors import Overloaded, RequestAborted, WorkerLost
from protocol.finish import FinishReason
from protocol.sampling import SampledToken
from tests.patience import PATIENCE_S

CHAT = "/v1/chat/completions"
ASKED = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}
RESUMABLE = (b"x-baton-resumable", b"1")
TOKENS = [5, 6, 7, 8, 9, 10, 11, 12]


async def until(condition):
    """The loop goes round until it holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)


class HeldStream(IteratedStream):
    """Says what it is told to, when it is told to."""

    def __init__(self):
        self.timeline = Timeline(0.0)
        self.events: asyncio.Queue[StreamEvent] = asyncio.Queue()
        self.cancel_reason = None

    async def __aiter__(self):
        while True:
            event = await self.events.get()
            yield event
            if event.finish_reason is not None or event.error is not None:
                return

    def cancel(self, reason):
        self.cancel_reason = reason
        self.events.put_nowait(StreamEvent(error=RequestAborted(reason)))

    def finish(self):
        """Nothing to do."""

    def say(self, *token_ids, end=None):
        for position, token_id in enumerate(token_ids, start=1):
            reason = end if position == len(token_ids) else None
            tokens = [SampledToken(token_id=token_id)]
            self.events.put_nowait(StreamEvent(tokens=tokens, finish_reason=reason))


class HeldService(ScriptedService):
    """Streams that go on by hand."""

    def submit(self, generation):
        self.generations.append(generation)
        self.streams.append(HeldStream())  # type: ignore[arg-type]
        return self.streams[-1]


class Reader:
    """One connection, by hand."""

    def __init__(self, app, path, body=b"", headers=(), method="POST", query=b""):
        self.status, self.body, self.has_ended = None, b"", False
        self._left = asyncio.Event()
        self._sent = False
        self._request = {"type": "http.request", "body": body}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query,
            "headers": [*headers],
            "scheme": "http",
            "server": ("edge", 80),
            "root_path": "",
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self):
        if not self._sent:
            self._sent = True
            return self._request
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.body += message["body"]
            self.has_ended = not message.get("more_body", False)

    async def until(self, count):
        """As soon as it has so many events."""
        await until(lambda: self.body.count(b"\n\n") >= count)

    async def leave(self):
        self._left.set()
        await asyncio.wait_for(self.task, PATIENCE_S)


@pytest.fixture
def service():
    return HeldService()


def asking(app, *headers, **fields):
    return Reader(app, CHAT, orjson.dumps(ASKED | fields), headers)


def ids(body):
    return [line[4:] for line in body.split(b"\n") if line.startswith(b"id: ")]


async def began(app, service, tokens=3, **fields):
    """A resumable stream with some events, and its only reader."""
    count_before, reader = len(service.streams), asking(app, RESUMABLE, **fields)
    await until(lambda: len(service.streams) > count_before)
    for count, token_id in enumerate(TOKENS[:tokens], start=1):
        service.streams[-1].say(token_id)
        await reader.until(count)
    return reader


async def test_a_client_that_comes_back_gets_the_exact_rest(app, service):
    whole = await began(app, service)
    service.streams[0].say(*TOKENS[3:], end=FinishReason.STOP)
    await asyncio.wait_for(whole.task, PATIENCE_S)
    events = [event + b"\n\n" for event in whole.body.split(b"\n\n")[:-1]]
    assert whole.has_ended
    assert events[-1].endswith(b"data: [DONE]\n\n")
    names = ids(whole.body)
    assert len(names) == len(events) == len(set(names))
    for position, name in enumerate(names):
        again = Reader(app, CHAT, b"{}", [(b"last-event-id", name)])
        await asyncio.wait_for(again.task, PATIENCE_S)
        assert (again.status, again.body) == (200, b"".join(events[position + 1 :]))


async def test_an_answer_goes_on_while_its_client_is_away(app, service):
    first = await began(app, service)
    await first.leave()
    service.streams[0].say(*TOKENS[3:6])
    second = Reader(app, CHAT, b"{}", [(b"last-event-id", ids(first.body)[1])])
    await second.until(4)
    service.streams[0].say(*TOKENS[6:], end=FinishReason.LENGTH)
    await asyncio.wait_for(second.task, PATIENCE_S)
    assert service.streams[0].cancel_reason is None
    assert len(service.streams) == 1
    said = first.body.split(b"\n\n")[:2] + second.body.split(b"\n\n")
    names = [int(name.rpartition(b":")[2]) for name in ids(b"\n\n".join(said))]
    assert names == list(range(len(names)))


async def test_two_readers_get_the_same(app, service):
    first = await began(app, service)
    name = ids(first.body)[0].rpartition(b":")[0] + b":0"
    second = Reader(app, CHAT, b"{}", [(b"last-event-id", name)])
    service.streams[0].say(*TOKENS[3:], end=FinishReason.STOP)
    await asyncio.wait_for(asyncio.gather(first.task, second.task), PATIENCE_S)
    assert first.body.endswith(second.body)
    assert len(ids(second.body)) == len(ids(first.body)) - 1


async def test_a_stream_that_did_not_ask_is_cancelled_at_once(app, service):
    reader = asking(app)
    await until(lambda: service.streams)
    service.streams[0].say(5)
    await reader.until(1)
    await reader.leave()
    assert service.streams[0].cancel_reason == "client disconnected"
    assert ids(reader.body) == []


async def test_nobody_comes_back_and_it_is_cancelled(app, service):
    kept = app.state.streams
    kept._resume_s = 0.5
    reader = await began(app, service)
    await reader.leave()
    (held,) = service.streams
    assert not held.cancel_reason
    await until(lambda: held.cancel_reason)
    assert held.cancel_reason == "nobody came back to the stream"
    assert (len(kept), kept.num_bytes) == (0, 0)
    late = Reader(app, CHAT, b"{}", [(b"last-event-id", ids(reader.body)[0])])
    await asyncio.wait_for(late.task, PATIENCE_S)
    assert late.status == 404
    assert orjson.loads(late.body)["error"]["code"] == "stream_not_found"


async def test_whoever_comes_back_stops_the_clock(app, service):
    app.state.streams._resume_s = 0.5
    first = await began(app, service)
    await first.leave()
    second = Reader(app, CHAT, b"{}", [(b"last-event-id", ids(first.body)[-1])])
    await asyncio.sleep(0.7)
    assert service.streams[0].cancel_reason is None
    service.streams[0].say(*TOKENS[3:], end=FinishReason.STOP)
    await asyncio.wait_for(second.task, PATIENCE_S)
    assert second.body.endswith(b"data: [DONE]\n\n")


async def test_a_client_that_leaves_before_the_first_event_cannot_come_back(app, service):
    reader = asking(app, RESUMABLE)
    await until(lambda: service.streams)
    await reader.leave()
    await asyncio.sleep(0)
    assert service.streams[0].cancel_reason == "nobody came back to the stream"
    assert len(app.state.streams) == 0


async def test_a_failure_before_the_first_event_is_a_status(app, service):
    service.refusal = Overloaded("full", 2.2)
    service.submit = lambda generation: ScriptedService.submit(service, generation)
    reader = asking(app, RESUMABLE)
    await asyncio.wait_for(reader.task, PATIENCE_S)
    assert reader.status == 429


async def test_a_failure_later_is_an_event_that_can_be_read_again(app, service):
    reader = await began(app, service)
    service.streams[0].events.put_nowait(StreamEvent(error=WorkerLost("all are gone")))
    await asyncio.wait_for(reader.task, PATIENCE_S)
    again = Reader(app, CHAT, b"{}", [(b"last-event-id", ids(reader.body)[2])])
    await asyncio.wait_for(again.task, PATIENCE_S)
    assert b"all are gone" in again.body
    assert reader.body.endswith(again.body)


async def test_another_tenant_sees_nothing(service, served_model):
    app = create_app(service=service, model=served_model, api_keys=["k1", "k2"])
    first = await began_as(app, service, b"k1")
    name = ids(first.body)[0]
    other = Reader(app, CHAT, b"{}", [(b"last-event-id", name), (b"x-api-key", b"k2")])
    await asyncio.wait_for(other.task, PATIENCE_S)
    assert other.status == 404
    service.streams[0].say(9, end=FinishReason.STOP)
    own = Reader(app, CHAT, b"{}", [(b"last-event-id", name), (b"x-api-key", b"k1")])
    await asyncio.wait_for(own.task, PATIENCE_S)
    assert own.status == 200


async def began_as(app, service, key):
    reader = asking(app, RESUMABLE, (b"x-api-key", key))
    await until(lambda: service.streams)
    service.streams[-1].say(5)
    await reader.until(1)
    return reader


@pytest.mark.parametrize("name", [b"x", b":1", b"chatcmpl-1:", b"chatcmpl-1:-1", b"chatcmpl-1:1e3"])
async def test_what_is_no_event_is_refused_by_name(app, name):
    reader = Reader(app, CHAT, b"{}", [(b"last-event-id", name)])
    await asyncio.wait_for(reader.task, PATIENCE_S)
    assert reader.status == 400
    assert orjson.loads(reader.body)["error"]["param"] == "Last-Event-ID"


async def test_an_event_that_was_never_said_is_not_found(app, service):
    reader = await began(app, service)
    name = ids(reader.body)[0].rpartition(b":")[0] + b":99"
    late = Reader(app, CHAT, b"{}", [(b"last-event-id", name)])
    await asyncio.wait_for(late.task, PATIENCE_S)
    assert late.status == 404
    await reader.leave()


async def test_memory_is_bounded_for_one_and_for_all(app, service):
    kept = app.state.streams
    kept._most_stream_bytes = 2000
    first = await began(app, service, tokens=8)
    assert 0 < kept.num_bytes <= 2000
    await first.leave()
    early = Reader(app, CHAT, b"{}", [(b"last-event-id", ids(first.body)[0])])
    await asyncio.wait_for(early.task, PATIENCE_S)
    assert early.status == 404
    kept._most_bytes = 1000
    second = await began(app, service, tokens=4)
    assert service.streams[0].cancel_reason == "nobody came back to the stream"
    assert kept.num_bytes <= 1000
    await second.leave()


# ---- responses


async def background(app, service, **fields):
    asked = {"input": "Hello", "stream": True, "background": True} | fields
    reader = Reader(app, "/v1/responses", orjson.dumps(asked))
    await until(lambda: service.streams)
    service.streams[-1].say(*TOKENS[:3])
    await reader.until(7)
    created = orjson.loads(reader.body.split(b"\n\n")[0].partition(b"data: ")[2])
    return reader, created["response"]["id"]


def got(app, response_id, query=b"", method="GET", tail=""):
    path = f"/v1/responses/{response_id}{tail}"
    return Reader(app, path, method=method, query=query)


async def test_a_response_in_the_background_is_gone_on_with_after_any_event(app, service):
    reader, name = await background(app, service)
    await reader.leave()
    during = got(app, name)
    await asyncio.wait_for(during.task, PATIENCE_S)
    assert orjson.loads(during.body)["status"] == "in_progress"
    service.streams[0].say(*TOKENS[3:], end=FinishReason.STOP)
    whole = got(app, name, b"stream=true")
    await asyncio.wait_for(whole.task, PATIENCE_S)
    assert whole.body.startswith(reader.body)
    events = [event + b"\n\n" for event in whole.body.split(b"\n\n")[:-1]]
    numbers = [orjson.loads(it.partition(b"data: ")[2])["sequence_number"] for it in events]
    assert numbers == list(range(len(events)))
    for number in numbers:
        rest = got(app, name, f"stream=true&starting_after={number}".encode())
        await asyncio.wait_for(rest.task, PATIENCE_S)
        assert rest.body == b"".join(events[number + 1 :])
    ended = got(app, name)
    await asyncio.wait_for(ended.task, PATIENCE_S)
    told = orjson.loads(ended.body)
    assert (told["status"], told["background"]) == ("completed", True)


async def test_a_response_in_the_background_can_be_cancelled(app, service):
    reader, name = await background(app, service)
    cancelled = got(app, name, method="POST", tail="/cancel")
    await asyncio.wait_for(cancelled.task, PATIENCE_S)
    told = orjson.loads(cancelled.body)
    assert (told["id"], told["status"]) == (name, "cancelled")
    await asyncio.sleep(0)
    assert service.streams[0].cancel_reason is not None
    await asyncio.wait_for(reader.task, PATIENCE_S)
    assert not reader.has_ended


@pytest.mark.parametrize("is_over", [False, True])
async def test_a_response_that_is_deleted_leaves_no_stream(app, service, is_over):
    reader, name = await background(app, service)
    if is_over:
        service.streams[0].say(*TOKENS[3:], end=FinishReason.STOP)
        await asyncio.wait_for(reader.task, PATIENCE_S)
    deleted = got(app, name, method="DELETE")
    await asyncio.wait_for(deleted.task, PATIENCE_S)
    assert orjson.loads(deleted.body)["deleted"] is True
    await asyncio.wait_for(reader.task, PATIENCE_S)
    assert (service.streams[0].cancel_reason is None) == is_over
    for query in (b"", b"stream=true"):
        gone = got(app, name, query)
        await asyncio.wait_for(gone.task, PATIENCE_S)
        assert gone.status == 404
    twice = got(app, name, method="DELETE")
    await asyncio.wait_for(twice.task, PATIENCE_S)
    assert twice.status == 404
    assert app.state.streams.num_bytes == 0


async def test_a_response_in_front_is_not_streamed_again(app, service, served_model):
    plain = ScriptedService(default=say([5], FinishReason.STOP))
    app = create_app(service=plain, model=served_model)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        made = (await client.post("/v1/responses", json={"input": "x"})).json()
        assert (await client.get(f"/v1/responses/{made['id']}")).status_code == 200
        again = await client.get(f"/v1/responses/{made['id']}?stream=true")
        assert again.status_code == 404
        refused = await client.get(f"/v1/responses/{made['id']}?stream=true&starting_after=-1")
        assert refused.status_code in (400, 422)

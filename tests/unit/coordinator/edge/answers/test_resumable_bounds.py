"""How much is kept of streams that may be gone on with, whose goes first, and that a stream's end is told whatever fails."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from coordinator.edge.answers.resumable import KeptStream, KeptStreams, StreamGone
from coordinator.edge.app import create_app
from protocol.errors import Overloaded
from protocol.finish import FinishReason
from tests.patience import PATIENCE_S
from tests.unit.coordinator.edge.answers.test_resumable import (
    CHAT,
    RESUMABLE,
    HeldService,
    Reader,
    asking,
    ids,
    until,
)

TENANTS = ("k1", "k2", "k3")


@pytest.fixture
def service():
    return HeldService()


@pytest.fixture
def app(service, served_model):
    return create_app(service=service, model=served_model, api_keys=TENANTS)


async def began(app, service, tenant, tokens=1, **fields):
    """A stream with some events, and its reader."""
    before = len(service.streams)
    reader = asking(app, RESUMABLE, (b"x-api-key", tenant.encode()), **fields)
    await until(lambda: len(service.streams) > before)
    for count in range(1, tokens + 1):
        service.streams[-1].say(5)
        await reader.until(count)
    return reader


async def again(app, tenant, reader, place=0):
    name = ids(reader.body)[place]
    headers = [(b"last-event-id", name), (b"x-api-key", tenant.encode())]
    back = Reader(app, CHAT, b"{}", headers)
    await until(lambda: back.status is not None)
    return back


async def test_one_stream_more_than_can_be_kept_is_refused_and_costs_the_others_nothing(
    app, service
):
    app.state.streams._most_streams = 3
    readers = [await began(app, service, tenant, 2) for tenant in TENANTS]
    refused = asking(app, RESUMABLE, (b"x-api-key", b"k1"))
    await asyncio.wait_for(refused.task, PATIENCE_S)
    assert refused.status == 429
    assert orjson.loads(refused.body)["error"]["type"] == Overloaded.error_type
    assert len(service.streams) == len(app.state.streams) == 3
    for reader, tenant in zip(readers, TENANTS, strict=True):
        assert (await again(app, tenant, reader)).status == 200
    plain = asking(app, (b"x-api-key", b"k1"))
    await until(lambda: len(service.streams) == 4)
    await plain.leave()


async def test_a_new_stream_takes_the_place_of_one_that_the_fullest_tenant_does_not_read(
    app, service
):
    app.state.streams._most_streams = 4
    for tenant in ("k2", "k1", "k1", "k1"):
        await (await began(app, service, tenant)).leave()
    service.streams[2].say(6, end=FinishReason.STOP)
    await until(lambda: sum(one.is_over for one in app.state.streams._kept.values()) == 1)
    over = next(one.stream_id for one in app.state.streams._kept.values() if one.is_over)
    first = await began(app, service, "k3")
    assert over not in app.state.streams._kept
    assert [stream.cancel_reason for stream in service.streams[:4]] == [None] * 4
    second = await began(app, service, "k3")
    await until(lambda: service.streams[1].cancel_reason)
    assert service.streams[0].cancel_reason is None
    for reader in (first, second):
        await reader.leave()


async def test_nobodys_stream_goes_for_a_tenant_that_holds_more(app, service):
    app.state.streams._most_streams = 3
    readers = [await began(app, service, "k1") for _ in range(2)]
    await (await began(app, service, "k2")).leave()
    refused = asking(app, RESUMABLE, (b"x-api-key", b"k1"))
    await asyncio.wait_for(refused.task, PATIENCE_S)
    assert refused.status == 429
    assert service.streams[2].cancel_reason is None
    for reader in readers:
        await reader.leave()


async def test_a_stream_that_the_cluster_refuses_takes_nobodys_place(app, service):
    app.state.streams._most_streams = 1
    await (await began(app, service, "k1")).leave()

    def refuse(_):
        raise Overloaded("full")

    service.submit_all = refuse
    refused = asking(app, RESUMABLE, (b"x-api-key", b"k1"))
    await asyncio.wait_for(refused.task, PATIENCE_S)
    assert (refused.status, service.streams[0].cancel_reason) == (429, None)
    assert len(app.state.streams) == 1


async def test_too_many_bytes_are_taken_from_the_tenant_that_holds_most(app, service):
    kept = app.state.streams
    small = await began(app, service, "k2", 2)
    size = kept.num_bytes
    large = await began(app, service, "k1", 8)
    kept._most_bytes = kept.num_bytes + size // 4
    await (await began(app, service, "k3", 1)).leave()
    assert kept.num_bytes <= kept._most_bytes
    assert (await again(app, "k2", small)).status == 200
    gone = await again(app, "k1", large)
    await asyncio.wait_for(gone.task, PATIENCE_S)
    assert gone.status == 404
    assert (await again(app, "k1", large, -2)).status == 200


def test_the_event_that_came_last_is_never_forgotten():
    kept = KeptStream("s", "", numbered=True)
    for count in range(1, 6):
        kept.add([b"data: x"])
        while kept.drop_first():
            pass
        assert (kept.end, len(kept.events)) == (count, 1)
    assert kept.num_bytes > 0


async def test_one_event_beyond_all_bounds_is_kept_and_ends_nothing(app, service):
    reader = await began(app, service, "k1", 2)
    app.state.streams._most_stream_bytes = app.state.streams._most_bytes = 10
    for count in (3, 4):
        service.streams[0].say(5)
        await reader.until(count)
    (kept,) = app.state.streams._kept.values()
    assert len(kept.events) == 1
    assert (await again(app, "k1", reader, -2)).status == 200
    await reader.leave()


async def test_what_every_reader_has_taken_goes_before_the_bound_is_exceeded(app, service):
    """Many streams of which each has but one event left would be beyond it together."""
    kept, readers = app.state.streams, []
    kept._most_bytes = 10
    for tenant in (*TENANTS, *TENANTS):
        readers.append(await began(app, service, tenant, 2))
        assert sum(len(one.events) for one in kept._kept.values()) == 1
    assert kept.num_bytes == sum(one.num_bytes for one in kept._kept.values())
    for reader in readers:
        await reader.leave()


async def test_what_one_reader_still_has_to_take_is_kept_for_it():
    kept = KeptStream("s", "", numbered=True)
    assert kept.drop_taken() == 0
    kept.num_readers = 2
    quick = asyncio.create_task(kept.after(1))
    slow = asyncio.create_task(kept.after(0))
    await asyncio.sleep(0)
    kept.add([b"data: x"])
    await slow
    again = asyncio.create_task(kept.after(1))
    await asyncio.sleep(0)
    assert kept.drop_taken() > 0
    quick.cancel()
    await asyncio.wait([quick])
    kept.add([b"data: y"])
    assert kept.drop_taken() == 0
    assert len(await again) == 1
    leaving = asyncio.create_task(kept.after(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    kept.num_readers = 1
    assert kept.drop_taken() == 0


async def test_a_reader_takes_no_more_at_once_than_it_may():
    kept = KeptStream("s", "", numbered=False)
    kept.add([b"data: x" * 100] * 10)
    sizes = [len(await kept.after(0, most)) for most in (1, 700, 703, 7000, 10**6)]
    assert sizes == [1, 1, 2, 10, 10]


async def test_a_failure_to_close_the_books_leaves_no_reader_waiting(app, service, monkeypatch):
    reader = await began(app, service, "k1")

    def fail(*_):
        raise RuntimeError("the books are gone")

    monkeypatch.setattr("coordinator.edge.answers.generation_run.GenerationRun.close", fail)
    (kept,) = app.state.streams._kept.values()
    service.streams[0].say(6, end=FinishReason.STOP)
    await asyncio.wait_for(reader.task, PATIENCE_S)
    assert reader.body.endswith(b"data: [DONE]\n\n")
    assert kept.is_over
    with pytest.raises(RuntimeError):
        await kept.task


async def test_a_stream_that_is_forgotten_before_it_began_leaves_no_reader_waiting():
    nothing: Any = None
    streams, run = (
        KeptStreams(nothing, nothing),
        SimpleNamespace(facts=SimpleNamespace(reply_id="s")),
    )
    kept = streams.begin(cast("Any", run), nothing, "", numbered=True)
    waiting = asyncio.create_task(kept.after(0))
    streams.forget(kept)
    with pytest.raises(StreamGone, match="was ended"):
        await asyncio.wait_for(waiting, PATIENCE_S)

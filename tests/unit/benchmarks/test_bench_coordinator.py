"""What the client of `baton bench coordinator` makes of a stream."""

from __future__ import annotations

import asyncio
import json

import pytest

from benchmarks.coordinator.bench import StreamClient, Tally
from benchmarks.coordinator.stamped_tokens import Stamps
from protocol.clock import ManualClock


@pytest.fixture
def stamps(tmp_path) -> Stamps:
    vocabulary = {"Ġa": 1, "bc": 2, "1": 3, "é": 4, "d": 5, "Ġ": 6}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    return Stamps(tmp_path)


def event(*token_ids: int) -> bytes:
    body = {"choices": [{"index": 0, "text": "a", "token_ids": token_ids}]}
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


async def heard(stamps: Stamps, *pieces: bytes) -> Tally:
    tally = Tally(stamps, ManualClock(5e-4), 1)
    client = StreamClient(b"", tally, asyncio.get_running_loop().create_future())
    for piece in pieces:
        client.data_received(piece)
    return tally


def test_stamps_are_plain_letters(stamps) -> None:
    assert stamps.ids == [1, 2, 5]


@pytest.mark.parametrize("now_s", [0.0, 1e-4, 2e-4, 7.77777])
def test_a_fresh_stamp_has_no_age(stamps, now_s) -> None:
    assert stamps.age_s(stamps.stamp(now_s), now_s) <= 1e-4


def test_age_is_read_in_ticks(stamps) -> None:
    assert stamps.age_s(stamps.stamp(1.0), 1.0 + 2e-4) == pytest.approx(2e-4, abs=1e-9)


async def test_every_token_of_an_event_counts(stamps) -> None:
    assert (await heard(stamps, event(1), event(1, 2, 5))).tokens == 4


async def test_an_event_in_two_pieces_counts_once(stamps) -> None:
    whole = event(1)
    assert (await heard(stamps, whole[:30], whole[30:])).tokens == 1


async def test_an_error_event_is_trouble(stamps) -> None:
    assert (await heard(stamps, b'data: {"error":{"message":"x"}}\n\n')).trouble


async def test_nothing_counts_before_every_stream_runs(stamps) -> None:
    tally = Tally(stamps, ManualClock(), 2)
    tally.take(b"1", 0.0)
    assert tally.tokens == 0


async def test_a_connection_that_breaks_is_trouble(stamps) -> None:
    tally = Tally(stamps, ManualClock(), 1)
    client = StreamClient(b"", tally, asyncio.get_running_loop().create_future())
    client.connection_lost(None)
    assert "ended early" in tally.trouble[0]

"""Answers that are sent in pieces are booked by their last one: who leaves in between has not got them."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from coordinator.accounts.terms import KeyTerms
from coordinator.edge.answers import responses
from coordinator.edge.http.last_bytes import SCOPE_KEY
from tests.patience import PATIENCE_S
from tests.unit.coordinator.edge.http.test_keys import COMPLETE, HELLO, booked, edge

PIECE_BYTES = 64


class Connection:
    """A client that leaves after `patience` pieces. What is written after a receipt was handed over is the last of an answer,
    as the real connection takes it."""

    def __init__(self, key, patience, **fields):
        self.patience = patience
        self.pieces = []
        self._receipt = None
        self._gone = asyncio.Event()
        self._asked = [{"type": "http.request", "body": orjson.dumps(HELLO | fields)}]
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": COMPLETE,
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {key}".encode())],
            "scheme": "http",
            "server": ("edge", 80),
            "root_path": "",
            SCOPE_KEY: self.hand_over,
        }

    def hand_over(self, receipt):
        self._receipt = receipt

    async def receive(self):
        if self._asked:
            return self._asked.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        if message["type"] != "http.response.body":
            return
        if len(self.pieces) == self.patience:
            self._gone.set()
            await asyncio.Event().wait()
        self.pieces.append(message["body"])
        receipt, self._receipt = self._receipt, None
        if receipt is not None:
            receipt.leaving()
            receipt.left()


@pytest.mark.parametrize(
    ("patience", "row"),
    [(1, ("abort", "client_disconnected", False, 0)), (100, ("stop", None, True, 3))],
)
async def test_a_whole_answer_is_booked_by_its_last_piece(
    served_model, tmp_path, monkeypatch, patience, row
):
    monkeypatch.setattr(responses, "PIECE_BYTES", PIECE_BYTES)
    async with edge(served_model, tmp_path) as (client, accounts, app):
        key = (await accounts.create(KeyTerms())).secret
        there = Connection(key, patience)
        await asyncio.wait_for(app(there.scope, there.receive, there.send), PATIENCE_S)
        assert await booked(client, key) == [row]
        if row[0] == "stop":
            assert orjson.loads(b"".join(there.pieces))["usage"]["completion_tokens"] == 3
            assert len(there.pieces) > 2

"""What one turn of the event loop takes of the processor, whatever one client sends: told in processor time, which others on
the machine change little."""

from __future__ import annotations

import asyncio
import http.client
import time
from asyncio import events
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

from coordinator.cluster.scripted_service import ScriptedPools
from coordinator.edge.app import create_app
from coordinator.edge.http.wire.limits import WireLimits
from coordinator.edge.http.wire.server import make_server
from tests.e2e.edge_server import PacedService, make_model
from tests.e2e.hostile_bodies import HOSTILE
from tests.e2e.hostile_dialects import DIALECTS
from tests.marks import deep
from tests.patience import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.e2e
BODIES = HOSTILE | DIALECTS
MAX_TURN_S = 0.05
"""The promise for how late the loop may be is 0.1 s, and several such turns may follow one another."""
OFTEN = ("128 lists of 8,000 ids",)
"""It was over it, as "128 full prompts" was: a prompt was spelled by `repr`, to tell which requests belong together."""


class Turns:
    """The longest since it was asked last, in processor time of the loop's thread."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.longest_s = 0.0
        run = events.Handle._run

        def timed(handle: events.Handle) -> None:
            began_s = time.thread_time()
            run(handle)
            self.longest_s = max(self.longest_s, time.thread_time() - began_s)

        patched.setattr(events.Handle, "_run", timed)


@pytest.fixture
async def port(tmp_path: Path) -> AsyncIterator[int]:
    """Of an edge on this very loop."""
    app = create_app(
        service=PacedService(scripts=deque(), is_short=True),
        model=make_model(tmp_path),
        pools=ScriptedPools(),
    )
    server = make_server(app, host="127.0.0.1", port=0, limits=WireLimits())
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.wait({running}, timeout=0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await running


def send(port: int, path: str, body: bytes) -> int:
    """The answer's status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        reply.read()
        return reply.status
    finally:
        connection.close()


@pytest.mark.parametrize("name", [*OFTEN, *(deep(name) for name in BODIES if name not in OFTEN)])
async def test_no_turn_is_long(port: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, made = BODIES[name]
    body = made()
    turns = Turns(monkeypatch)
    asked: list[Any] = [asyncio.to_thread(send, port, path, body) for _ in range(2)]
    assert set(await asyncio.gather(*asked)) <= {200, 400, 404}
    assert turns.longest_s < MAX_TURN_S

"""Sleep over HTTP: what is passed on, what vLLM's clients read, and which parameter an error names."""

from __future__ import annotations

from collections.abc import Iterable

import httpx
import pytest

from coordinator.cluster.scripted_service import ScriptedService
from coordinator.edge.app import create_app
from protocol.errors import PoolConflict
from protocol.sleeping import Part


class Sleepers:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.level = 0
        self.refusal: PoolConflict | None = None

    async def sleep(self, model: str | None, level: int) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.asked.append(("sleep", model, level))
        self.level = level

    async def wake(self, model: str | None, parts: Iterable[Part]) -> None:
        self.asked.append(("wake", model, *sorted(parts)))
        self.level = 0

    def is_asleep(self, model: str | None) -> bool:
        return bool(self.level)


@pytest.fixture
def sleepers() -> Sleepers:
    return Sleepers()


@pytest.fixture
async def operator(sleepers, served_model):
    app = create_app(service=ScriptedService(), model=served_model, sleeping=sleepers)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as connected:
        yield connected


async def test_a_client_of_vllm_puts_to_sleep_asks_and_wakes(operator, sleepers):
    assert (await operator.get("/is_sleeping")).json() == {"is_sleeping": False}
    reply = await operator.post("/sleep")
    assert (reply.status_code, reply.content) == (200, b"")
    assert (await operator.get("/is_sleeping")).json() == {"is_sleeping": True}
    (card,) = (
        card for card in (await operator.get("/v1/models")).json()["data"] if card["id"] == "tiny"
    )
    assert card["status"] == {"value": "sleeping"}
    reply = await operator.post("/wake_up")
    assert (reply.status_code, reply.content) == (200, b"")
    assert sleepers.asked == [("sleep", None, 1), ("wake", None, "kv_cache", "weights")]
    assert "status" not in (await operator.get("/v1/models")).json()["data"][0]


async def test_levels_modes_tags_and_models_are_passed_on(operator, sleepers):
    for asked in ("sleep?level=2&mode=wait&model=tiny-alias", "wake_up?tags=weights&model=tiny"):
        assert (await operator.post(f"/{asked}")).status_code == 200
    assert sleepers.asked == [("sleep", "tiny", 2), ("wake", "tiny", "weights")]


@pytest.mark.parametrize(
    ("asked", "status", "param"),
    [
        ("sleep?level=3", 400, "level"),
        ("sleep?level=", 400, "level"),
        ("sleep?mode=abort", 400, "mode"),
        ("sleep?levels=1", 400, "levels"),
        ("sleep?model=other", 404, "model"),
        ("wake_up?tags=kv", 400, "tags"),
        ("wake_up?tags=weights&tags=all", 400, "tags"),
        ("wake_up?level=1", 400, "level"),
    ],
)
async def test_what_there_is_not_is_named(operator, sleepers, asked, status, param):
    reply = await operator.post(f"/{asked}")
    assert reply.status_code == status
    assert reply.json()["error"]["param"] == param
    assert sleepers.asked == []


async def test_why_it_does_not_sleep_is_told(operator, sleepers):
    sleepers.refusal = PoolConflict("3 requests use it")
    reply = await operator.post("/sleep")
    assert reply.status_code == 409
    assert "3 requests" in reply.json()["error"]["message"]

"""The autoscaler's settings over HTTP: what is passed on, and which field an error names."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from coordinator.cluster.scripted_service import ScriptedPools, ScriptedService
from coordinator.cluster.service_api import AutoscaleWish
from coordinator.edge.app import create_app


class Policy:
    """Remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[AutoscaleWish] = []

    def settings(self) -> dict[str, Any]:
        return {"mode": "off"}

    def change(self, wish: AutoscaleWish) -> dict[str, Any]:
        self.asked.append(wish)
        return {"mode": "on"}


@pytest.fixture
def policy() -> Policy:
    return Policy()


@pytest.fixture
async def operator(policy, served_model):
    app = create_app(
        service=ScriptedService(),
        model=served_model,
        pools=ScriptedPools(),
        policy=policy,
        api_keys=["client"],
        admin_keys=["admin"],
    )
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    headers = {"authorization": "Bearer admin"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://edge", headers=headers
    ) as connected:
        yield connected


async def test_what_is_named_is_passed_on(operator, policy):
    assert (await operator.get("/cluster/autoscale")).json() == {"mode": "off"}
    body = {"mode": "dry-run", "ttft_ms": 500, "prefill": [1, 4], "goal": 0.95}
    reply = await operator.post("/cluster/autoscale", json=body)
    assert (reply.status_code, reply.json()) == (200, {"mode": "on"})
    assert policy.asked == [AutoscaleWish(mode="dry-run", ttft_ms=500, prefill=(1, 4), goal=0.95)]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"mode": "maybe"}, "mode"),
        ({"ttft_ms": 0}, "ttft_ms"),
        ({"goal": 1.0}, "goal"),
        ({"prefill": [1]}, "prefill"),
        ({"decode": [1, 2.5]}, "decode[1]"),
        ({"decode": [-1, 2]}, "decode[0]"),
        ({"idle_s": 0}, "idle_s"),
        ({"total": 257}, "total"),
        ({"slo": "ttft:5"}, "slo"),
    ],
)
async def test_errors_name_the_field(operator, policy, body, field):
    reply = await operator.post("/cluster/autoscale", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == field
    assert policy.asked == []


async def test_a_clients_key_opens_nothing_here(operator, policy):
    client = {"authorization": "Bearer client"}
    for method in ("GET", "POST"):
        reply = await operator.request(
            method, "/cluster/autoscale", headers=client, json={"mode": "off"}
        )
        assert reply.status_code == 403
    assert policy.asked == []

"""Scaling over HTTP: what is passed on, and which field an error names."""

from __future__ import annotations

import httpx
import pytest

from coordinator.cluster.scripted_service import ScriptedPools, ScriptedService
from coordinator.edge.app import create_app
from protocol.errors import NoLauncher, PoolConflict, WorkerNotFound


@pytest.fixture
def pools() -> ScriptedPools:
    return ScriptedPools()


@pytest.fixture
async def operator(pools, served_model):
    app = create_app(service=ScriptedService(), model=served_model, pools=pools)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as connected:
        yield connected


@pytest.mark.parametrize(
    ("body", "call"),
    [
        ({"prefill": 3, "decode": 2}, ("scale", 3, 2)),
        ({"decode": 2}, ("scale", None, 2)),
        ({"prefill": 0}, ("scale", 0, None)),
    ],
)
async def test_numbers_are_passed_on_and_the_target_answered(operator, pools, body, call):
    reply = await operator.post("/cluster/scale", json=body)
    assert reply.status_code == 200
    assert reply.json()["target"] == pools.target
    assert pools.asked == [call]


async def test_drains_and_roles_are_passed_on(operator, pools):
    assert (await operator.post("/cluster/workers/decode-1/drain")).status_code == 200
    hurried = await operator.post("/cluster/workers/decode-2/drain", json={"within_s": 30})
    assert hurried.status_code == 200
    flip = await operator.post("/cluster/workers/prefill-0/role", json={"role": "decode"})
    assert flip.json()["role"] == "decode"
    assert pools.asked == [
        ("drain", "decode-1"),
        ("drain", "decode-2", 30.0),
        ("set_role", "prefill-0", "decode"),
    ]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/cluster/scale", {}, "prefill"),
        ("/cluster/scale", {"prefil": 2}, "prefil"),
        ("/cluster/scale", {"prefill": -1}, "prefill"),
        ("/cluster/scale", {"prefill": 257}, "prefill"),
        ("/cluster/scale", {"decode": "2"}, "decode"),
        ("/cluster/scale", {"decode": 1.5}, "decode"),
        ("/cluster/scale", {"decode": True}, "decode"),
        ("/cluster/scale", [], "body"),
        ("/cluster/workers/w/drain", {"within_s": -1}, "within_s"),
        ("/cluster/workers/w/drain", {"within": 5}, "within"),
        ("/cluster/workers/w/role", {}, "role"),
        ("/cluster/workers/w/role", {"role": "both"}, "role"),
        ("/cluster/workers/w/role", {"role": "decode", "now": True}, "now"),
    ],
)
async def test_bad_bodies_name_the_field_and_change_nothing(operator, pools, path, body, field):
    reply = await operator.post(path, json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == field
    assert pools.asked == []


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (WorkerNotFound("there is no worker 'w'", "worker"), 404, "NotFoundError"),
        (PoolConflict("the last decode worker"), 409, "ConflictError"),
        (NoLauncher("no launcher is connected"), 503, "ServiceUnavailableError"),
    ],
)
async def test_refusals_have_their_status_and_their_words(operator, pools, error, code, kind):
    pools.refusal = error
    reply = await operator.post("/cluster/workers/w/drain")
    assert reply.status_code == code
    told = reply.json()["error"]
    assert (told["type"], told["message"]) == (kind, str(error))

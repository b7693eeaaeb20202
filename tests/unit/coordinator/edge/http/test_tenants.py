"""What one tenant keeps another cannot read, end, go on with, or tell from what there never was."""

from __future__ import annotations

import re

import pytest

from coordinator.accounts.terms import KeyTerms
from coordinator.cluster.scripted_service import ScriptedService, say
from coordinator.edge.http.route_list import RouteList
from protocol.finish import FinishReason
from tests.unit.coordinator.edge.http.all_options import everything
from tests.unit.coordinator.edge.http.test_keys import COMPLETE, HELLO, PLACES, bearer, edge

NEVER = "resp_00000000000000000000000000000000"
SECRET = "the secret of tenant a"


def asked(response_id, headers):
    """Everything that names a response or a stream."""
    one = f"/v1/responses/{response_id}"
    goes_on = {"input": "x", "previous_response_id": response_id}
    event = {"last-event-id": f"{response_id}:0"}
    stream = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": True}
    return [
        ("GET", one, {"headers": headers}),
        ("GET", f"{one}?stream=true", {"headers": headers}),
        ("GET", f"{one}?stream=true&starting_after=0", {"headers": headers}),
        ("GET", f"{one}/input_items", {"headers": headers}),
        ("POST", f"{one}/cancel", {"headers": headers}),
        ("POST", "/v1/responses", {"headers": headers, "json": goes_on}),
        ("POST", "/v1/chat/completions", {"headers": headers | event, "json": stream}),
        ("DELETE", one, {"headers": headers}),
    ]


@pytest.mark.parametrize("is_background", [False, True])
async def test_nobody_learns_of_another_tenants_answers(served_model, tmp_path, is_background):
    service = ScriptedService(default=say([5, 6, 2], FinishReason.STOP))
    async with edge(served_model, tmp_path, service, api_keys=["static"], admin_keys=["boss"]) as (
        client,
        accounts,
        _,
    ):
        own = bearer((await accounts.create(KeyTerms(tenant="a"))).secret)
        beside = bearer((await accounts.create(KeyTerms(tenant="a"))).secret)
        others = [
            bearer((await accounts.create(KeyTerms(tenant="b", shared_cache="all"))).secret),
            bearer((await accounts.create(KeyTerms())).secret),
            bearer("static"),
        ]
        body = {"input": SECRET, "background": is_background, "stream": is_background}
        reply = await client.post("/v1/responses", json=body, headers=own)
        assert reply.status_code == 200, reply.text
        response_id = f"resp_{reply.text.split('resp_')[1].split(chr(34))[0]}"
        for headers in others:
            for (method, path, told), (_, there, _) in zip(
                asked(response_id, headers), asked(NEVER, headers), strict=True
            ):
                mine = await client.request(method, path, **told)
                none = dict(told)
                if "json" in told and "previous_response_id" in told["json"]:
                    none["json"] = told["json"] | {"previous_response_id": NEVER}
                if "last-event-id" in told["headers"]:
                    none["headers"] = told["headers"] | {"last-event-id": f"{NEVER}:0"}
                never = await client.request(method, there, **none)
                assert mine.status_code == never.status_code, (method, path, mine.text)
                assert mine.status_code in (400, 404), (method, path, mine.text)
                assert mine.text.replace(response_id, NEVER) == never.text
                assert SECRET not in mine.text
        for headers in (own, beside):
            kept = await client.get(f"/v1/responses/{response_id}", headers=headers)
            assert kept.json()["status"] == "completed", kept.text
            items = await client.get(f"/v1/responses/{response_id}/input_items", headers=headers)
            assert SECRET in items.text


async def test_every_route_that_names_what_a_tenant_keeps_is_asked_above(served_model, tmp_path):
    """The others name what is everybody's, or the operators': a route with a place of another kind needs a row of its own."""
    async with edge(served_model, tmp_path, **everything(tmp_path)) as (_, _, app):
        routes = {
            (method, route.path)
            for route in RouteList(app.routes)
            for method in (route.methods or set()) - {"HEAD", "OPTIONS"}
        }
    places = {name for _, path in routes for name in re.findall(r"{(\w+)", path)}
    assert places == set(PLACES)
    rows = {(method, path.split("?")[0]) for method, path, _ in asked("{response_id}", {})}
    assert {(method, path) for method, path in routes if "response_id" in path} <= rows
    assert ("POST", "/v1/responses") in rows


@pytest.mark.parametrize("scope", ["inference", "metrics"])
async def test_nobody_reads_another_tenants_usage(served_model, tmp_path, scope):
    async with edge(served_model, tmp_path) as (client, accounts, _):
        made = await accounts.create(KeyTerms(tenant="tenant-a", name="a"))
        used = await client.post(COMPLETE, json=HELLO, headers=bearer(made.secret))
        assert used.status_code == 200
        others = [
            await accounts.create(KeyTerms(tenant=tenant, scopes=(scope,), shared_cache=""))
            for tenant in ("tenant-b", "")
        ]
        groups = ("key", "tenant", "model", "request", "key,tenant,model")
        for other in others:
            for query in ("", "&tenant=tenant-a", f"&tenant={made.record.key_id}", "&model=tiny"):
                for group in groups:
                    for form in ("json", "csv"):
                        path = f"/usage?group_by={group}&format={form}{query}"
                        reply = await client.get(path, headers=bearer(other.secret))
                        assert reply.status_code == 200, path
                        assert used.json()["id"] not in reply.text
                        assert "tenant-a" not in reply.text
                        assert made.record.key_id not in reply.text
                        rows = reply.json()["data"] if form == "json" else reply.text.split()[1:]
                        assert rows == [], path
            named = f"/usage?key={made.record.key_id}"
            for path in (named, f"{named}&key={other.record.key_id}"):
                reply = await client.get(path, headers=bearer(other.secret))
                assert reply.status_code == 400 or reply.json()["data"] == [], path
                assert used.json()["id"] not in reply.text


async def test_another_tenants_key_is_no_operators(served_model, tmp_path):
    async with edge(served_model, tmp_path) as (client, accounts, _):
        made = await accounts.create(KeyTerms(tenant="a"))
        beside = await accounts.create(KeyTerms(tenant="a"))
        other = await accounts.create(KeyTerms(tenant="b"))
        one = f"/keys/{made.record.key_id}"
        rows = [("GET", one), ("DELETE", one), ("POST", f"{one}/rotate"), ("GET", "/keys")]
        for key in (other, beside, made):
            for method, path in rows:
                reply = await client.request(method, path, headers=bearer(key.secret))
                assert reply.status_code == 403, (method, path)
                assert made.record.masked not in reply.text
        assert (await client.get("/usage", headers=bearer(made.secret))).status_code == 200

"""Below a proxy's path: every route answers with the path and without, and both are counted, refused and told as one."""

from __future__ import annotations

import httpx
import pytest

from coordinator.cluster.scripted_service import ScriptedPools, ScriptedService
from coordinator.edge.app import Sites, create_app
from coordinator.edge.http.below_path import prefix_text
from coordinator.edge.http.route_list import RouteList
from protocol.errors import ConfigError
from tests.unit.coordinator.edge.http.all_options import everything
from tests.unit.coordinator.edge.http.test_keys import PLACES

PREFIX = "/llm"


def made(served_model, root_path, **options):
    return create_app(
        service=ScriptedService(),
        model=served_model,
        pools=ScriptedPools(),
        root_path=root_path,
        **options,
    )


def connected(app):
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


async def test_every_route_is_the_same_with_the_path_and_without(served_model, tmp_path):
    keys = {"api_keys": ["static"], "admin_keys": ["boss"]}
    app = made(served_model, PREFIX, **keys, **everything(tmp_path))
    async with connected(app) as client:
        for route in RouteList(app.routes):
            path = route.path.replace(":path", "")
            for name, value in PLACES.items():
                path = path.replace(f"{{{name}}}", value)
            for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
                for shown in ("", "static"):
                    headers = {"authorization": f"Bearer {shown}", "x-request-id": "r"}
                    if shown and method == "POST":
                        continue  # answers have ids of their own
                    replies = [
                        await client.request(method, f"{begin}{path}", headers=headers)
                        for begin in ("", PREFIX)
                    ]
                    own, below = replies
                    what = (method, path, shown)
                    assert (below.status_code, below.headers.get("allow")) == (
                        own.status_code,
                        own.headers.get("allow"),
                    ), what
                    if own.status_code >= 400:
                        assert below.text == own.text, what
        metrics = (await client.get("/metrics", headers={"x-api-key": "boss"})).text
    for line in metrics.splitlines():
        if line.startswith("http_requests_total{"):
            assert 'handler="none"' not in line
            assert PREFIX not in line


async def test_a_refusal_before_the_routes_is_told_in_the_clients_dialect(served_model):
    app = made(served_model, PREFIX, sites=Sites(checks_host=True))
    headers = {"host": "evil.example"}
    async with connected(app) as client:
        for begin in ("", PREFIX):
            reply = await client.post(f"{begin}/v1/messages", json={}, headers=headers)
            assert (reply.status_code, reply.json()["type"]) == (421, "error")


async def test_only_the_path_itself_is_taken_away_and_once(served_model):
    async with connected(made(served_model, PREFIX)) as client:
        for path in ("/llmv1/models", "/llm/llm/v1/models", "/LLM/v1/models", "/llm//v1/models"):
            assert (await client.get(path)).status_code == 404
        told = (await client.get("/llm/openapi.json")).json()
        assert told["servers"] == [{"url": PREFIX}]


async def test_a_prefix_is_kept_without_the_slash_at_its_end(served_model):
    async with connected(made(served_model, "/llm/")) as client:
        assert (await client.get("/llm/v1/models")).status_code == 200


@pytest.mark.parametrize(
    "text", ["llm", "http://h/llm", "/a//b", "/a?b", "/a#b", "/a%20b", "/a\nb"]
)
def test_what_is_no_prefix_is_refused(text):
    with pytest.raises(ValueError, match="is no path: write it as /llm"):
        prefix_text(text)


@pytest.mark.parametrize("text", ["/v1", "/v1/", "/api", "/cluster", "/health"])
def test_a_prefix_that_our_own_paths_have_is_refused(served_model, text):
    with pytest.raises(ConfigError, match=r"--root-path: .* is the beginning of this server's own"):
        made(served_model, text)

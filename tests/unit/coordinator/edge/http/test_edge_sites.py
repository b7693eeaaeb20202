"""Which pages, hosts and methods are answered, what an unknown path is told, and how requests are counted."""

from __future__ import annotations

import httpx
import pytest

from coordinator.cluster.scripted_service import ScriptedPools, ScriptedService, say
from coordinator.edge.app import Sites, create_app
from coordinator.edge.http.sites import name_of
from protocol.finish import FinishReason

COMPLETE, SCALE = "/v1/completions", "/cluster/scale"
HELLO = {"prompt": "Hello"}


def client_of(served_model, sites=None, pools=None, **keys):
    service = ScriptedService(default=say([2], FinishReason.STOP))
    app = create_app(
        service=service, model=served_model, sites=sites, pools=pools or ScriptedPools(), **keys
    )
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:8000")


LOCAL = Sites(checks_host=True, hosts=("box.lan",))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("app.localhost", 200),
        ("127.0.0.1:8000", 200),
        ("127.8.8.8", 200),
        ("[::1]:8000", 200),
        ("192.168.0.7", 200),
        ("box.lan:80", 200),
        ("box.lan.", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("evil.example/localhost", 421),
        ("localhost@evil.example", 421),
        ("evil.example?localhost", 421),
        ("localhost#evil", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost:port", 421),
        ("[::1", 421),
    ],
)
async def test_a_host_is_this_server_or_refused(served_model, host, status):
    async with client_of(served_model, LOCAL) as client:
        for path in ("/v1/models", "/cluster", "/health"):
            assert (await client.get(path, headers={"Host": host})).status_code == status
    if status == 421:
        async with client_of(served_model, Sites(checks_host=True, hosts=("*",))) as client:
            assert (await client.get("/v1/models", headers={"Host": host})).status_code == 200
        async with client_of(served_model, LOCAL, api_keys=["k"]) as client:
            headers = {"Host": host, "x-api-key": "k"}
            assert (await client.get("/v1/models", headers=headers)).status_code == 200


def test_a_name_is_all_of_a_host():
    assert name_of("a:1") == "a"
    assert name_of("") is None


FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "https://localhost:8000"},
    {"Origin": "http://localhost"},
    {"Origin": "http://localhost:8000@evil.example"},
    {"Origin": "http://localhost:port"},
    {"Origin": "http://localhost:8000.evil.example"},
    {"Origin": "file://"},
    {"Origin": "http://[bad"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]
OWN = [
    {},
    {"Origin": "HTTP://LOCALHOST:8000"},
    {"Origin": "http://localhost:8000"},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
async def test_pages_of_other_sites_change_and_compute_nothing(served_model, headers):
    pools = ScriptedPools()
    async with client_of(served_model, pools=pools) as client:
        for kind in ("text/plain", "application/json"):
            told = headers | {"Content-Type": kind}
            for path, body in ((SCALE, {"prefill": 9}), (COMPLETE, HELLO), ("/tokenize", HELLO)):
                reply = await client.post(path, json=body, headers=told)
                assert (reply.status_code, reply.json()["error"]["code"]) == (403, "foreign_origin")
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
    assert pools.asked == []


@pytest.mark.parametrize(
    ("url", "origin", "status"),
    [
        ("https://box.lan", "https://box.lan", 200),
        ("https://box.lan", "https://box.lan:443", 200),
        ("https://box.lan:443", "https://box.lan", 200),
        ("https://box.lan", "http://box.lan", 403),
        ("https://box.lan:8443", "http://box.lan:8443", 403),
        ("http://box.lan", "http://box.lan:80", 200),
        ("http://box.lan", "https://box.lan", 403),
        ("http://[::1]:8000", "http://[::1]:8000", 200),
    ],
)
async def test_a_page_is_of_its_scheme_host_and_port(served_model, url, origin, status):
    async with client_of(served_model) as client:
        reply = await client.post(f"{url}{COMPLETE}", json=HELLO, headers={"Origin": origin})
        assert reply.status_code == status


@pytest.mark.parametrize("headers", OWN, ids=str)
@pytest.mark.parametrize(
    "kind", ["application/json", "application/x-www-form-urlencoded", "text/plain"]
)
async def test_own_pages_and_other_programs_may(served_model, headers, kind):
    async with client_of(served_model) as client:
        reply = await client.post(COMPLETE, json=HELLO, headers=headers | {"Content-Type": kind})
        assert reply.status_code == 200


async def test_with_a_key_the_key_decides(served_model):
    async with client_of(served_model, api_keys=["k"]) as client:
        headers = {"Origin": "app://chat", "x-api-key": "k"}
        assert (await client.post(COMPLETE, json=HELLO, headers=headers)).status_code == 200


async def test_allowed_origins_are_told_so(served_model):
    sites = Sites(origins=("https://chat.example",))
    async with client_of(served_model, sites) as client:
        headers = {"Origin": "https://chat.example"}
        reply = await client.post(COMPLETE, json=HELLO, headers=headers)
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == "https://chat.example"
        asked = headers | {"Access-Control-Request-Method": "POST"}
        preflight = await client.options(COMPLETE, headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://chat.example"
        other = {"Origin": "https://evil.example"}
        assert (await client.post(COMPLETE, json=HELLO, headers=other)).status_code == 403
    async with client_of(served_model, Sites(origins=("*",))) as client:
        assert (await client.post(COMPLETE, json=HELLO, headers=other)).status_code == 200


async def test_head_and_options_are_answered(client):
    for path in (
        "/health",
        "/live",
        "/v1/models",
        "/v1/models/tiny",
        "/metrics",
        "/version",
        "/ui",
    ):
        head = await client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        options = await client.options(path)
        assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
    assert (await client.options(COMPLETE)).headers["allow"] == "OPTIONS, POST"
    assert (await client.head(COMPLETE)).status_code == 405
    assert (await client.options("/nowhere")).status_code in (404, 405)
    assert (await client.head("/nowhere")).status_code == 404


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("/chat/completions", "it is /v1/chat/completions"),
        ("/v1/v1/chat/completions", "it is /v1/chat/completions"),
        ("/completions", "it is /v1/completions"),
        ("/models", "it is /v1/models"),
        ("/v1/tokenize", "it is /tokenize"),
        ("/v1/health", "it is /health"),
        ("/v1/embedding", "there are /"),
        ("/openai/v1/responses", "it is /v1/responses"),
        ("/v1/api/chat", "it is /api/chat"),
        ("/generate", "it is /api/generate"),
        ("/anthropic/v1/messages", "it is /v1/messages"),
        ("/" + "a/" * 2000, "there are /"),
    ],
)
async def test_an_unknown_path_is_told_what_there_is(client, path, advice):
    error = (await client.post(path, json={})).json()["error"]
    told = path if len(path) < 100 else f"{path[:400]} … {path[-400:]}"
    assert error["message"].startswith(f"there is no {told}; {advice}")
    assert error["code"] == "unknown_url"


@pytest.mark.parametrize(
    ("path", "option"),
    [
        ("/v1/load_lora_adapter", "--enable-lora"),
        ("/models/load", "--max-loaded-models"),
        ("/keys", "--keys-db"),
        ("/cluster/deployments", "--router-config"),
    ],
)
async def test_a_path_that_an_option_brings_names_it(client, path, option):
    message = (await client.post(path, json={})).json()["error"]["message"]
    assert message.startswith(
        f"there is no {path} on this server; one that is started with {option}"
    )


async def test_all_paths_are_told(served_model):
    async with client_of(served_model) as client:
        told = (await client.get("/nowhere")).json()["error"]["message"]
        document = (await client.get("/openapi.json")).json()
    assert [path for path in document["paths"] if f" {path}" not in told] == []
    assert {"/api/chat", "/v1/responses/{response_id}", "/cluster/scale"} <= set(document["paths"])


async def test_requests_are_counted_by_route(client, service):
    service.default = say([2], FinishReason.STOP)
    await client.post(COMPLETE, json=HELLO)
    await client.post(COMPLETE, json={})
    await client.get("/v1/models/tiny")
    for index in range(3):
        await client.get(f"/nowhere/{index}")
    await client.request("BREW", "/v1/models")
    told = (await client.get("/metrics")).text
    for line in (
        'http_requests_total{handler="/v1/completions",method="POST",status="2xx"} 1.0',
        'http_requests_total{handler="/v1/completions",method="POST",status="4xx"} 1.0',
        'http_requests_total{handler="/v1/models/{model_id:path}",method="GET",status="2xx"} 1.0',
        'http_requests_total{handler="none",method="GET",status="4xx"} 3.0',
        'http_requests_total{handler="/v1/models",method="other",status="4xx"} 1.0',
        'http_request_duration_seconds_count{handler="/v1/completions",method="POST"} 2.0',
    ):
        assert line in told

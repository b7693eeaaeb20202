"""The live page as the edge serves it: open, closed in itself, and harmless."""

from __future__ import annotations

import base64
import hashlib
import re

import httpx
import pytest

from coordinator.edge.app import create_app
from coordinator.edge.operations.routes_ui import PAGE, content_security_policy


@pytest.fixture
async def locked(service, served_model, clock):
    app = create_app(service=service, model=served_model, clock=clock, api_keys=["k"])
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as connected:
        yield connected


async def test_page_is_html(client):
    response = await client.get("/ui")
    assert response.headers["content-type"] == "text/html; charset=utf-8"


async def test_page_is_open_without_a_key(locked):
    assert (await locked.get("/ui")).status_code == 200


async def test_what_the_page_asks_for_is_not(locked):
    assert (await locked.get("/cluster")).status_code == 401


async def test_policy_names_the_script_that_the_page_has(client):
    response = await client.get("/ui")
    (script,) = re.findall("<script>(.*?)</script>", response.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in response.headers["content-security-policy"]


def test_policy_allows_nothing_unsafe():
    assert "unsafe" not in content_security_policy("<script>1</script><style></style>")


def test_page_names_no_other_host():
    urls = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", PAGE.read_text(encoding="utf-8"))
    assert [url for url in urls if not url.startswith("http://www.w3.org/2000/svg")] == []


def test_page_writes_text_only():
    page = PAGE.read_text(encoding="utf-8")
    risky = re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\son\w+=", page
    )
    assert risky == []


async def test_cluster_tells_the_last_two_minutes(client, service):
    service.view = {"workers": []}
    assert (await client.get("/cluster")).json()["recent"]["summary"]["output_tokens_per_s"] == 0

"""Keys, their limits and usage, and the deployments of groups on the live page, in a real browser."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.e2e.browser import CHROMIUM, Browser
from tests.e2e.server import BATON, MOCK, Server, free_port

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
NAME = "sales bot"
SECRET = "sk-of-the-other-server"
KEYS = "document.getElementById('keys-list').innerText"
PLACES = "document.getElementById('deployments-list').innerText"


def keys(*words: str) -> str:
    done = subprocess.run([BATON, "keys", *words], check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A database with an operator's and a client's key, and a group of our own pools and a server that is not there."""
    directory = tmp_path_factory.mktemp("front-door")
    nowhere = f"http://127.0.0.1:{free_port()}/v1"
    places = [
        {"model": "hosted_vllm/other", "api_base": nowhere, "api_key": SECRET, "order": 1},
        {"model": "baton/smollm2-135m", "order": 2},
    ]
    entries = [{"model_name": "chat", "litellm_params": place} for place in places]
    settings = {"num_retries": 1, "allowed_fails": 0, "cooldown_time": 3600}
    told = {"model_list": entries, "router_settings": settings}
    (directory / "router.yaml").write_text(yaml.safe_dump(told), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def boss(files) -> str:
    return keys("create", "--keys-db", str(files / "keys.db"), "--scopes", "admin").strip()


@pytest.fixture(scope="module")
def client_key(files) -> dict[str, str]:
    limits = ("--requests-per-minute", "60", "--budget", "2")
    told = ("--keys-db", str(files / "keys.db"), "--tenant", "acme", "--name", NAME)
    made: dict[str, str] = json.loads(keys("create", *told, *limits, "--json"))
    return made


@pytest.fixture(scope="module")
def server(files, boss, client_key) -> Iterator[Server]:
    options = ("--keys-db", str(files / "keys.db"), "--router-config", str(files / "router.yaml"))
    with Server(*options, "--price", "*=1/2", program=MOCK) as running:
        yield running


@pytest.fixture(scope="module")
def page(server, boss) -> Iterator[Browser]:
    with Browser() as browser:
        browser.resize(1280, 1600)
        browser.open(f"{server.url}/ui")
        browser.wait_for("document.getElementById('lock').open")
        browser.write(boss)
        browser.press("Enter")
        browser.wait_for("document.querySelectorAll('#keys-list article').length === 2")
        yield browser


def ask(server: Server, key: str, model: str) -> httpx.Response:
    told = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 7}
    headers = {"authorization": f"Bearer {key}"}
    return server.client.post("/v1/chat/completions", json=told, headers=headers)


def test_what_a_key_used_is_shown_and_its_secret_is_not(page, server, client_key, boss) -> None:
    for _ in range(3):
        assert ask(server, client_key["key"], "smollm2-135m").status_code == 200
    page.wait_for(f"/last 24 h 3 requests/.test({KEYS}) && /3 of 60 a minute/.test({KEYS})")
    shown = page.text("#keys-list")
    for told in (client_key["masked"], "acme", NAME, "active", "of 2 spent", "cost "):
        assert told in shown
    html = page.run("document.documentElement.outerHTML")
    assert client_key["key"] not in html
    assert boss not in html


def test_a_deployment_that_is_left_alone_says_since_what(page, server, client_key) -> None:
    reply = ask(server, client_key["key"], "chat")
    assert reply.status_code == 200, reply.text
    page.wait_for(f"/left alone for 3,[0-9]+ s/.test({PLACES})")
    shown = page.text("#deployments-list")
    for told in ("chat/1", "hosted_vllm", "chat/2", "up", "failed 1"):
        assert told in shown
    assert SECRET not in page.run("document.documentElement.outerHTML")


def test_a_key_that_is_revoked_shows_as_such(page, server, boss, client_key) -> None:
    told = {"authorization": f"Bearer {boss}"}
    assert server.client.delete(f"/keys/{client_key['id']}", headers=told).status_code == 200
    page.wait_for("document.querySelector('#keys-list .state.revoked') !== null")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_all_without_sideways_scrolling(page, scheme) -> None:
    page.prefer(scheme)
    page.resize(360, 740, is_phone=True)
    page.wait_for("document.querySelectorAll('#deployments-list article').length === 2")
    assert page.run("document.documentElement.scrollWidth") == 360
    beyond_the_first_key = [told for told in page.errors if "status of 401" not in told]
    assert beyond_the_first_key == []

"""Stores on the live page, in a real browser: tiers, how full, what was lent, and what failed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.browser import CHROMIUM, Browser
from tests.e2e.server import MOCK, Server
from tests.e2e.test_store import SHAPE, ask, await_ready, prompt_of

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
FACTS = "document.querySelector('#worker-store-0 .facts').innerText"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    kept = f"dram=24MiB,disk=64MiB,path={tmp_path_factory.mktemp('store')}"
    with Server(*SHAPE, "--kv-cache-memory", "24MiB", "--kv-store", kept, program=MOCK) as it:
        await_ready(it)
        yield it


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[Browser]:
    with Browser() as browser:
        browser.resize(1280, 1200)
        browser.open(f"{server.url}/ui")
        browser.wait_for("document.querySelectorAll('.worker.ready').length === 3")
        yield browser


def test_a_store_has_a_place_of_its_own_and_no_button_that_flips_it(page: Browser) -> None:
    assert page.run("document.querySelector('.pool.store #worker-store-0') !== null")
    shown = (
        "[...document.querySelectorAll('#worker-store-0 .orders button')].filter(b => !b.hidden)"
    )
    assert page.run(f"{shown}.map(b => b.innerText)") == ["Drain"]
    assert page.text("#store-size").startswith("1 of 1 ready")
    assert page.text("#health-text") == "ready"


def test_tiers_and_what_was_lent_of_each_are_shown(page: Browser, server: Server) -> None:
    for count in range(1, 4):
        ask(server, prompt_of(count))
        page.wait_for(f"Number(/on disk (\\d+) blocks/.exec({FACTS})?.[1]) >= {19 * count}")
    ask(server, prompt_of(1))
    page.wait_for(f"/from disk [1-9]/.test({FACTS})")
    shown = page.text("#worker-store-0 .facts")
    for told in ("in memory", "lent from memory", "kept", "still to be kept", "disk behind by"):
        assert told in shown
    assert "of 64.0 MiB" in shown
    assert page.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_sideways_scrolling(page: Browser, scheme: str) -> None:
    page.prefer(scheme)
    page.resize(360, 740, is_phone=True)
    page.wait_for("document.querySelector('#worker-store-0.ready') !== null")
    assert page.run("document.documentElement.scrollWidth") == 360

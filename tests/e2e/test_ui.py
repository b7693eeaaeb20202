"""The live page in a real browser, before a real server."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.browser import CHROMIUM, Browser
from tests.e2e.server import Server
from tests.patience import in_time

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.xdist_group("model"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
SMALL = ("--kv-cache-memory", "256MiB")
KEY = "sesame-of-the-test"
BOTH_READY = "document.querySelectorAll('.worker.ready').length === 2"
TIMING = "document.querySelector('.timing')"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(*SMALL) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


@pytest.fixture
def page(server, browser) -> Browser:
    """The page of a server whose workers are both ready, on a desk."""
    browser.resize(1280, 900)
    browser.open(f"{server.url}/ui")
    browser.wait_for(BOTH_READY)
    return browser


def ask(page: Browser, question: str) -> None:
    page.run("document.getElementById('question').focus()")
    page.write(question)
    page.press("Enter")


def test_both_workers_are_shown(page) -> None:
    assert page.run("[...document.querySelectorAll('.worker h3')].map(e => e.innerText)") == [
        "prefill-0",
        "decode-0",
    ]


def test_nothing_but_the_server_is_asked(page, server) -> None:
    assert [url for url in page.requests if not url.startswith((server.url, "data:"))] == []


def test_console_stays_empty(page) -> None:
    ask(page, "What is the capital of Japan?")
    page.wait_for(TIMING)
    assert page.errors == []


def test_answer_streams(page) -> None:
    page.run(
        "window.seen = []; new MutationObserver(() => window.seen.push("
        "document.querySelector('.turn:not(.mine)')?.innerText.length ?? 0))"
        ".observe(document.getElementById('talk'), {childList: true, subtree: true}); 0"
    )
    ask(page, "Tell me a short story about the sea.")
    page.wait_for(TIMING)
    assert len(set(page.run("window.seen"))) > 20


def test_answer_tells_its_ttft_and_tpot(page) -> None:
    ask(page, "Count from one to ten.")
    page.wait_for(TIMING)
    told = page.text(".timing")
    assert "TTFT" in told
    assert "TPOT" in told


def test_plots_show_what_other_clients_do(page, server) -> None:
    server.complete(model="smollm2-135m", prompt="Once upon a time", max_tokens=32)
    page.wait_for("Number(document.querySelector('.plot .number').innerText) > 0")


def test_markup_in_an_answer_stays_text(page) -> None:
    ask(page, "<img src=x onerror='window.hacked = 1'><b>bold</b>")
    page.wait_for(TIMING)
    assert page.run("document.querySelectorAll('#talk img, #talk b').length") == 0


def test_escape_stops_an_answer(page, server) -> None:
    page.run("document.getElementById('max-tokens').value = 4000; 0")
    ask(page, "Write a very long story about a lighthouse keeper, with many chapters.")
    page.wait_for("document.querySelector('.turn.open')?.innerText.length > 40")
    page.press("Escape")
    page.wait_for("document.querySelector('.told .error')?.innerText === 'stopped'")
    page.wait_for("document.getElementById('phase-decode').innerText === '0'")


def test_what_changed_before_it_was_opened_is_told(page) -> None:
    told = page.text("#changes")
    for line in ("wanted: 1 prefill, 1 decode", "prefill-0 is ready", "decode-0 is ready"):
        assert line in told


def test_service_tells_the_slo_and_pools_their_sizes(page) -> None:
    assert "SLO: TTFT 2.0 s, TPOT 100 ms" in page.text("#notes-list")
    assert page.text("#prefill-size") == "1 of 1 ready"


def test_operators_scale_flip_and_drain_here(page) -> None:
    page.run("document.getElementById('prefill-more').click()")
    page.wait_for("document.querySelector('#worker-prefill-1.ready')", 90)
    page.run("document.querySelector('#worker-prefill-1 .orders button:last-child').click()")
    page.wait_for("document.querySelector('.pool.decode #worker-prefill-1')", 20)
    assert (
        page.run("document.querySelector('#worker-prefill-1 .orders button').innerText") == "Drain"
    )
    page.run("document.querySelector('#worker-prefill-1 .orders button').click()")
    page.wait_for("!document.getElementById('worker-prefill-1')", 90)
    page.wait_for("document.getElementById('changes').innerText.includes('prefill-1 left')", 20)
    page.run("document.getElementById('decode-less').click()")
    page.wait_for("document.getElementById('refusal').innerText.includes('decode')", 10)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(page, scheme) -> None:
    page.prefer(scheme)
    page.resize(360, 740, is_phone=True)
    ask(page, "What is the capital of Japan? " + "Antidisestablishmentarianism" * 4)
    page.wait_for(TIMING)
    beyond = (
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('svg, .hidden')"
        " && e.getBoundingClientRect().right > 360.5).map(e => e.tagName + '.' + e.className)"
    )
    assert page.run("document.documentElement.scrollWidth") == 360
    assert page.run(beyond) == []


def test_every_control_has_a_name(page) -> None:
    nodes = page.tell("Accessibility.getFullAXTree")["nodes"]
    controls = [
        node
        for node in nodes
        if node.get("role", {}).get("value") in ("button", "textbox", "spinbutton", "meter", "img")
    ]
    assert [node for node in controls if not node.get("name", {}).get("value")] == []
    assert len(controls) >= 8


@pytest.mark.alone
def test_killed_worker_shows_within_2_s_and_comes_back(page, server) -> None:
    def attempt() -> float:
        page.wait_for(BOTH_READY)
        os.kill(server.worker("decode")["pid"], signal.SIGKILL)
        return page.wait_for(
            "document.querySelector('#worker-decode-0.lost, #worker-decode-0.starting')"
        )

    in_time(attempt, 2.0)
    page.wait_for(BOTH_READY)
    told = "document.querySelector('#changes').textContent"
    page.wait_for(f"{told}.includes('decode-0 is ready')")


def test_key_is_asked_for_and_forgotten_with_the_tab(browser, tmp_path: Path) -> None:
    browser.resize(1280, 900)
    with Server(*SMALL, "--api-key", KEY) as server:
        server.client.headers["authorization"] = f"Bearer {KEY}"
        browser.open(f"{server.url}/ui")
        browser.wait_for("document.getElementById('lock').open")
        browser.write(KEY)
        browser.press("Enter")
        browser.wait_for(BOTH_READY)
        assert browser.run("localStorage.length") == 0


@pytest.mark.deep
def test_operators_key_and_clients_key_are_asked_for_where_each_is_needed(
    browser, tmp_path: Path
) -> None:
    browser.resize(1280, 900)
    with Server(*SMALL, "--api-key", KEY, "--admin-api-key", f"{KEY}-2") as server:
        server.client.headers["authorization"] = f"Bearer {KEY}-2"
        browser.open(f"{server.url}/ui")
        for key, asked in ((KEY, "Kept in this tab"), (f"{KEY}-2", "an operator's key")):
            why = f"document.getElementById('lock-why').innerText.includes({asked!r})"
            browser.wait_for(f"document.getElementById('lock').open && {why}")
            browser.write(key)
            browser.press("Enter")
        browser.wait_for(BOTH_READY)
        ask(browser, "Hello")
        browser.wait_for(TIMING, 60)

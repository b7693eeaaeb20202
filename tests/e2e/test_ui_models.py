"""The live page of a server of several models that come and go, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.browser import CHROMIUM, Browser
from tests.e2e.fleet_campaign import write_models
from tests.e2e.server import Server
from tests.patience import until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.deep,
    pytest.mark.xdist_group("models"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
CONFIG = """
pd: 0p1d
dtype: float32
cpu-affinity: none
kv-cache-memory: 16MiB
memory-budget: 4GiB
models:
  - {base}/red
  - {base}/blue
"""
ROWS = "[...document.querySelectorAll('#models-list article')].map(row => row.innerText)"
WORKERS = "[...document.querySelectorAll('.pool .worker.ready h3')].map(row => row.innerText)"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base: Path = tmp_path_factory.mktemp("models")
    write_models(base, ("red", "blue"))
    (base / "baton.yaml").write_text(CONFIG.format(base=base))
    with Server("--config", str(base / "baton.yaml")) as running:
        yield running


@pytest.fixture(scope="module")
def page(server: Server) -> Iterator[Browser]:
    with Browser() as running:
        running.resize(1280, 900)
        running.open(f"{server.url}/ui")
        running.wait_for(f"{ROWS}.length === 2")
        yield running


def choose(page: Browser, select: str, model: str) -> None:
    page.run(
        f"(() => {{ const choice = document.getElementById('{select}'); choice.value = '{model}';"
        " choice.dispatchEvent(new Event('change')); })()"
    )


def test_models_that_are_out_are_told_and_a_question_brings_one_in(page: Browser) -> None:
    assert all("unloaded" in row for row in page.run(ROWS))
    choose(page, "asked-model", "blue")
    page.run("document.getElementById('max-tokens').value = 8; 0")
    page.run("document.getElementById('question').focus()")
    page.write("Hello")
    page.press("Enter")
    page.wait_for("document.querySelector('.timing')")
    page.wait_for(f"{ROWS}[1].includes('loaded') && !{ROWS}[1].includes('unloaded')")
    assert "unloaded" in page.run(ROWS)[0]
    page.wait_for(f"{WORKERS}.join() === 'blue.decode-0'")


def test_the_buttons_of_a_pool_change_the_model_that_is_chosen(page: Browser) -> None:
    choose(page, "decode-of", "red")
    page.run("document.getElementById('decode-more').click()")
    page.wait_for("document.getElementById('refusal').innerText.includes('baton load red')")
    choose(page, "decode-of", "blue")
    assert page.run("document.getElementById('prefill-of').value") == "blue"
    page.run("document.getElementById('decode-more').click()")
    page.wait_for(f"{WORKERS}.join() === 'blue.decode-0,blue.decode-1'")
    assert page.text("#refusal") == ""
    page.run("document.getElementById('decode-less').click()")
    page.wait_for(f"{WORKERS}.length === 1")


def test_it_fits_a_phone_and_every_choice_has_a_name(page: Browser, server: Server) -> None:
    for name in ("red", "blue"):
        server.client.post("/models/load", json={"model": name}).raise_for_status()
    until(lambda: len(page.run(WORKERS)) == 2, "both are shown")
    page.resize(360, 740, is_phone=True)
    assert page.run("document.documentElement.scrollWidth") == 360
    nodes = page.tell("Accessibility.getFullAXTree")["nodes"]
    choices = [node for node in nodes if node.get("role", {}).get("value") == "combobox"]
    assert choices
    assert all(node.get("name", {}).get("value") for node in choices)

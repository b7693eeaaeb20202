"""Several models in one server: each answers as it does alone, and one's trouble is nobody else's."""

from __future__ import annotations

import json
import os
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests import adapter_files
from tests.e2e.random_model import write_random_model
from tests.e2e.server import Server
from tests.greedy import expected_tokens
from tests.patience import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.xdist_group("models")
NAMES = ("red", "blue")
SMALL = ("--kv-cache-memory", "32MiB", "--dtype", "float32", "--cpu-affinity", "none")
PROMPT = "Once upon a time there was"


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models with the same tokens and other weights."""
    base = tmp_path_factory.mktemp("models")
    found = {}
    for seed, name in enumerate(NAMES):
        (base / name).mkdir()
        found[name] = write_random_model(base / name, seed)
    return found


@pytest.fixture(scope="module")
def alone(directories: dict[str, Path]) -> dict[str, str]:
    """What each says when it is served by itself."""
    said = {}
    for name, directory in directories.items():
        with Server(str(directory), *SMALL) as server:
            said[name] = answer(server, name)
    return said


@pytest.fixture(scope="module")
def fleet(
    directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """With a group for each model, and adapters."""
    file = tmp_path_factory.mktemp("router") / "config.json"
    entries = [
        {"model_name": f"group-{name}", "litellm_params": {"model": f"baton/{name}"}}
        for name in NAMES
    ]
    file.write_text(json.dumps({"model_list": entries}))
    options = (*SMALL, "--router-config", str(file), "--enable-lora")
    with Server(*map(str, directories.values()), *options) as server:
        yield server


def answer(server: Server, name: str) -> str:
    told = server.complete(model=name, prompt=PROMPT, max_tokens=24, temperature=0, seed=1)
    text: str = told["choices"][0]["text"]
    return text


def test_each_model_answers_as_it_does_alone(fleet: Server, alone: dict[str, str]) -> None:
    assert alone["red"] != alone["blue"]
    assert {name: answer(fleet, name) for name in NAMES} == alone
    assert {name: answer(fleet, f"group-{name}") for name in NAMES} == alone


def test_models_are_listed_and_unknown_ones_are_named(fleet: Server) -> None:
    cards = fleet.client.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards] == [*NAMES, *(f"group-{name}" for name in NAMES)]
    tags = fleet.client.get("/api/tags").json()["models"]
    assert [card["name"] for card in tags[:2]] == list(NAMES)
    assert tags[0]["digest"] != tags[1]["digest"]
    reply = fleet.client.post("/v1/completions", json={"model": "green", "prompt": "x"})
    assert reply.status_code == 404
    assert "red, blue" in reply.json()["error"]["message"]


def test_workers_and_accounts_are_each_models_own(fleet: Server) -> None:
    view = fleet.cluster()
    assert set(view["models"]) == set(NAMES)
    assert {worker["id"].partition(".")[0] for worker in view["workers"]} == set(NAMES)
    account = fleet.audit()
    assert account["balanced"]
    assert set(account["models"]) == set(NAMES)
    reply = fleet.client.post("/cluster/scale", json={"decode": 1})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "model"


def test_metrics_name_the_model_that_answered(fleet: Server) -> None:
    def tokens() -> dict[str, float]:
        text = fleet.client.get("/metrics").text
        found = {}
        for line in text.splitlines():
            if line.startswith("vllm:generation_tokens_total{"):
                name = line.partition('model_name="')[2].partition('"')[0]
                found[name] = float(line.rpartition(" ")[2])
        return found

    before = tokens()
    answer(fleet, "blue")
    after = tokens()
    assert after["red"] == before["red"]
    assert after["blue"] == before["blue"] + 24


def test_an_adapter_is_one_model_s_and_writes_what_its_merged_model_writes(
    fleet: Server, directories: dict[str, Path], tmp_path: Path
) -> None:
    def load(name: str) -> Any:
        return transformers.LlamaForCausalLM.from_pretrained(directories[name]).eval()

    path = adapter_files.write_adapter(load("blue"), tmp_path / "sql", 3, 2.0)
    body = {"lora_name": "sql", "lora_path": str(path)}
    told = fleet.client.post("/v1/load_lora_adapter", json=body)
    assert (told.status_code, told.json()["error"]["param"]) == (400, "base_model_name")
    for name in reversed(NAMES):
        more = {"base_model_name": name, "load_inplace": True}
        assert fleet.client.post("/v1/load_lora_adapter", json=body | more).is_success
        expected = expected_tokens(
            adapter_files.merged(partial(load, name), path), [40, 50, 60], 16
        )
        asked = {"model": "sql", "prompt": [40, 50, 60], "max_tokens": 16, "temperature": 0}
        reply = fleet.complete(**asked, ignore_eos=True, return_token_ids=True)
        assert reply["choices"][0]["token_ids"] == expected
    cards = {card["id"]: card for card in fleet.client.get("/v1/models").json()["data"]}
    assert cards["sql"]["parent"] == "red"
    lines = fleet.client.get("/metrics").text.splitlines()
    counted = 'baton_adapter_generation_tokens_total{adapter="sql",model_name="blue"} 16.0'
    assert counted in lines

    def holders() -> set[str]:
        resident = fleet.cluster()["adapters"]["resident"]
        return {worker for one in resident for worker in one["workers"]}

    until(lambda: "red.decode-0" in holders(), "a heartbeat tells of it")
    assert fleet.client.post("/v1/unload_lora_adapter", json={"lora_name": "sql"}).is_success


def stream(server: Server, name: str, texts: list[str]) -> None:
    body = {"model": name, "prompt": PROMPT, "max_tokens": 400, "temperature": 0}
    with server.client.stream(
        "POST", "/v1/completions", json=body | {"stream": True, "ignore_eos": True}
    ) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                told: dict[str, Any] = json.loads(line.removeprefix("data: "))
                texts.append(told["choices"][0]["text"])


def test_a_killed_worker_of_one_model_touches_no_stream_of_another(fleet: Server) -> None:
    texts: list[str] = []
    reader = threading.Thread(target=stream, args=(fleet, "blue", texts))
    reader.start()
    until(lambda: len(texts) > 2, "the stream has begun")
    victim = next(w for w in fleet.cluster()["workers"] if w["id"] == "red.decode-0")
    os.kill(victim["pid"], signal.SIGKILL)
    reader.join()
    whole = "".join(texts)
    again: list[str] = []
    stream(fleet, "blue", again)
    assert whole == "".join(again)
    assert fleet.cluster()["models"]["blue"]["replays"] == 0
    until(lambda: fleet.cluster()["models"]["red"]["ready"], "red is back")
    assert answer(fleet, "red")

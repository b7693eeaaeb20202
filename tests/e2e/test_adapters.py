"""Adapters through real processes: PEFT's merged model is the oracle, whoever is killed meanwhile."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.adapter_files import merged, write_adapter
from tests.e2e.random_model import write_random_model
from tests.e2e.server import Server
from tests.greedy import expected_tokens, random_prompts
from tests.marks import deep
from tests.patience import until

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("models")]

ADAPTERS: dict[str, dict[str, Any]] = {
    "all": {"r": 16},
    "some": {"r": 5, "target_modules": ["v_proj", "o_proj", "up_proj"], "use_rslora": True},
}
NUM_OUTPUT = 24


class Files:
    """A random model, its adapters, and what each writes, by transformers."""

    def __init__(self, directory: Path) -> None:
        self.model = write_random_model(_made(directory / "model"))
        self.adapters = {
            name: write_adapter(self.load(), directory / name, seed, 2.0, **how)
            for seed, (name, how) in enumerate(ADAPTERS.items())
        }
        self.prompts = random_prompts([5, 40, 70], 40_000)
        self.expected = {
            name: self.tokens(source) for name, source in (("", None), *self.adapters.items())
        }

    def load(self) -> Any:
        return transformers.LlamaForCausalLM.from_pretrained(self.model).eval()

    def tokens(self, source: Path | None) -> list[list[int]]:
        model = self.load() if source is None else merged(self.load, source)
        return [expected_tokens(model, prompt, NUM_OUTPUT) for prompt in self.prompts]


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module", params=["1p1d", deep("0p1d")])
def server(request: pytest.FixtureRequest, files: Files) -> Iterator[Server]:
    modules = [f"{name}={source}" for name, source in files.adapters.items()]
    arguments = ("--served-model-name", "base", "--dtype", "float32", "--pd", request.param)
    with Server(str(files.model), *arguments, "--enable-lora", "--lora-modules", *modules) as one:
        yield one


def written(server: Server, model: str, prompt: list[int], **changes: Any) -> list[int]:
    asked = {"temperature": 0, "ignore_eos": True, "return_token_ids": True} | changes
    reply = server.complete(model=model, prompt=prompt, max_tokens=NUM_OUTPUT, **asked)
    assert reply["model"] == model
    found: list[int] = reply["choices"][0]["token_ids"]
    return found


def everything(server: Server, files: Files) -> dict[str, list[list[int]]]:
    """What the model and every adapter write now, all at once."""
    with ThreadPoolExecutor(16) as pool:
        asked = {
            name: [pool.submit(written, server, name or "base", one) for one in files.prompts]
            for name in files.expected
        }
        return {name: [one.result() for one in some] for name, some in asked.items()}


def test_each_adapter_writes_what_its_merged_model_writes(server: Server, files: Files) -> None:
    assert everything(server, files) == files.expected
    assert everything(server, files) == files.expected  # out of caches
    assert len({str(tokens) for tokens in files.expected.values()}) == len(files.expected)


def is_whole(server: Server, num_workers: int) -> bool:
    """Every worker is ready, and the account with them balanced: without the one that died it is, too."""
    workers = server.cluster()["workers"]
    are_ready = [worker["state"] == "ready" for worker in workers]
    return are_ready == [True] * num_workers and server.audit()["balanced"]


def test_a_killed_worker_changes_no_token(server: Server, files: Files) -> None:
    """Of each pool that there is."""
    workers = server.cluster()["workers"]
    for role in sorted({worker["role"] for worker in workers}):
        victim = server.worker(role)["pid"]
        with ThreadPoolExecutor(1) as pool:
            answers = pool.submit(everything, server, files)
            until(lambda: server.cluster()["requests"]["live"] > 0, "requests under way")
            os.kill(victim, signal.SIGKILL)
            assert answers.result() == files.expected
        until(lambda: is_whole(server, len(workers)), "all workers back, their accounts balanced")


def test_what_replaces_an_adapter_answers_from_then_on(
    server: Server, files: Files, tmp_path: Path
) -> None:
    path = tmp_path / "adapter"
    load = {"lora_name": "changing", "lora_path": str(path)}
    prompt = files.prompts[1]
    for round_, name in enumerate(("all", "some", "all")):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(files.adapters[name], path)
        told = server.client.post("/v1/load_lora_adapter", json=load | {"load_inplace": round_ > 1})
        assert told.text == "Success: LoRA adapter 'changing' added successfully."
        for _ in range(2):
            assert written(server, "changing", prompt) == files.expected[name][1]
        if round_ == 0:
            server.client.post("/v1/unload_lora_adapter", json={"lora_name": "changing"})
    cards = {card["id"]: card for card in server.client.get("/v1/models").json()["data"]}
    assert (cards["changing"]["parent"], cards["changing"]["root"]) == ("base", str(path))
    assert cards["base"]["parent"] is None
    again = server.client.post("/v1/load_lora_adapter", json=load)
    assert (again.status_code, again.json()["error"]["param"]) == (400, "lora_name")
    server.client.post("/v1/unload_lora_adapter", json={"lora_name": "changing"})
    gone = server.client.post("/v1/completions", json={"model": "changing", "prompt": "a"})
    assert gone.status_code == 404


def test_a_bad_adapter_ends_nothing(server: Server, files: Files, tmp_path: Path) -> None:
    shutil.copytree(files.adapters["all"], tmp_path / "cut")
    weights = tmp_path / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for path in (tmp_path / "cut", tmp_path / "nowhere", files.model):
        told = server.client.post(
            "/v1/load_lora_adapter", json={"lora_name": "bad", "lora_path": str(path)}
        )
        assert (told.status_code, told.json()["error"]["param"]) == (400, "lora_path")
    assert written(server, "base", files.prompts[0]) == files.expected[""][0]

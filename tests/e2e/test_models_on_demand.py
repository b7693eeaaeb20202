"""Models that come when they are asked for, and go: real processes, three small models, memory for two."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from engine.checkpoints.prepared import WEIGHTS_NAME
from tests.e2e import fleet_campaign
from tests.e2e.fleet_campaign import write_models
from tests.e2e.server import BATON, Server
from tests.patience import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.xdist_group("models")
NAMES = ("red", "blue", "green", "torn", "cut")
PROMPT = "Once upon a time there was"
CONFIG = """
pd: 0p1d
dtype: float32
cpu-affinity: none
kv-cache-memory: 16MiB
max-loaded-models: 2
memory-budget: 4GiB
models:
  - {base}/red
  - {base}/blue
  - {base}/green
  - {base}/torn
  - {base}/cut
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models are, each under its name."""
    folder = tmp_path_factory.mktemp("models")
    write_models(folder, NAMES)
    return folder


@pytest.fixture(scope="module")
def server(base: Path) -> Iterator[Server]:
    file = base / "baton.yaml"
    file.write_text(CONFIG.format(base=base))
    cache = base / "cache"
    with Server("--config", str(file), environment={"BATON_CACHE": str(cache)}) as server:
        for prepared in (cache / "prepared").glob("torn-*/model.json"):
            prepared.write_text("{}")
        for weights in (cache / "prepared").glob(f"cut-*/{WEIGHTS_NAME}"):
            os.truncate(weights, 4096)
        yield server


def states(server: Server) -> dict[str, str]:
    cards = server.client.get("/models").json()["data"]
    return {card["id"]: card["status"]["value"] for card in cards}


def answer(server: Server, name: str, **more: Any) -> str:
    body = {"model": name, "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    told = server.complete(**(body | more))
    text: str = told["choices"][0]["text"]
    return text


def generate(server: Server, name: str, **body: Any) -> dict[str, Any]:
    reply = server.client.post("/api/generate", json={"model": name, "stream": False} | body)
    assert reply.status_code == 200, reply.text
    told: dict[str, Any] = reply.json()
    return told


def workers(server: Server) -> set[str]:
    return {worker["id"] for worker in server.cluster()["workers"]}


def test_models_come_go_and_say_the_same_again(server: Server) -> None:
    assert set(states(server).values()) == {"unloaded"}
    assert server.client.get("/api/ps").json() == {"models": []}
    first = answer(server, "red")
    answer(server, "blue")
    assert workers(server) == {"red.decode-0", "blue.decode-0"}
    assert [card["name"] for card in server.client.get("/api/ps").json()["models"]] == [
        "red",
        "blue",
    ]
    answer(server, "green")
    assert states(server)["red"] == "unloaded"
    assert workers(server) == {"blue.decode-0", "green.decode-0"}
    assert answer(server, "red") == first
    assert states(server)["blue"] == "unloaded"
    assert server.audit()["balanced"]


def test_one_load_is_for_all_who_wait(server: Server) -> None:
    generate(server, "blue", keep_alive=0)
    until(lambda: states(server)["blue"] == "unloaded", "blue has gone")
    before = server.log().count("loading blue")
    said: list[str] = []
    threads = [
        threading.Thread(target=lambda: said.append(answer(server, "blue"))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 6
    assert len(set(said)) == 1
    assert server.log().count("loading blue") == before + 1


def test_a_keep_alive_of_nothing_takes_the_model_out_and_for_ever_keeps_it(server: Server) -> None:
    told = generate(server, "red", keep_alive=-1)
    assert told["done_reason"] == "load"
    card = next(c for c in server.client.get("/api/ps").json()["models"] if c["name"] == "red")
    assert card["expires_at"].startswith("9999")
    told = generate(server, "red", prompt="Hello", keep_alive=0, options={"num_predict": 4})
    assert told["done"]
    until(lambda: states(server)["red"] == "unloaded", "red has gone")
    assert "red.decode-0" not in workers(server)
    reply = server.client.post("/api/generate", json={"model": "red", "keep_alive": "soon"})
    assert reply.status_code == 400
    assert "keep_alive" in reply.json()["error"]


def test_who_waits_for_a_model_that_cannot_be_loaded_hears_why(server: Server) -> None:
    reply = server.client.post("/v1/completions", json={"model": "torn", "prompt": "x"})
    assert reply.status_code == 503
    assert "'torn'" in reply.json()["error"]["message"]
    assert "is not a prepared model" in reply.json()["error"]["message"]
    assert int(reply.headers["retry-after"]) >= 1
    assert states(server)["torn"] == "failed"
    assert answer(server, "red")


def test_who_waits_for_a_model_whose_workers_die_at_their_start_hears_so(server: Server) -> None:
    """Its weights are shorter than their description: who touches the rest is killed."""
    reply = server.client.post("/v1/completions", json={"model": "cut", "prompt": "x"})
    assert reply.status_code == 503
    message = reply.json()["error"]["message"]
    assert "'cut'" in message
    assert "cut.decode-0" in message
    assert states(server)["cut"] == "failed"
    assert answer(server, "red")


def test_workers_are_forks_of_one_process_and_one_whose_server_was_killed_comes_too(
    server: Server,
) -> None:
    def fork_server() -> int | None:
        commands = {pid: Path(f"/proc/{pid}/cmdline") for pid in server.descendants()}
        held = {worker["pid"] for worker in server.cluster()["workers"]}
        for pid, file in commands.items():
            with contextlib.suppress(OSError):
                if b"fork_server" in file.read_bytes() and pid not in held:
                    return pid
        return None

    def parent(pid: int) -> int:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return int(stat.rpartition(")")[2].split()[1])

    until(lambda: fork_server() is not None, "the fork server")
    generate(server, "red", keep_alive=0)
    until(lambda: states(server)["red"] == "unloaded", "red has gone")
    expected = answer(server, "red")
    pid = server.worker("decode")["pid"]
    assert b"fork_server" in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert parent(pid) == server.process.pid
    first = fork_server()
    assert first is not None
    os.kill(first, signal.SIGKILL)
    generate(server, "red", keep_alive=0)
    until(lambda: states(server)["red"] == "unloaded", "red has gone")
    assert answer(server, "red") == expected
    until(lambda: fork_server() not in (None, first), "another fork server")


def test_the_verbs_bring_a_model_in_show_it_and_take_it_out(server: Server) -> None:
    def baton(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(BATON), *words, "--url", server.url]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert baton("load", "blue", "--keep-alive", "1h").stdout == "blue is loaded\n"
    row = next(line for line in baton("ps").stdout.splitlines() if line.startswith("blue"))
    assert "loaded" in row
    assert 3500 < float(row.split()[-2]) <= 3600
    assert "blue: loaded, goes in" in baton("status").stdout
    assert baton("unload", "blue").stdout == "blue goes\n"
    until(lambda: states(server)["blue"] == "unloaded", "blue has gone")
    refused = baton("load", "purple")
    assert refused.returncode != 0
    assert "'purple'" in refused.stderr


def test_a_model_that_is_unloaded_in_the_middle_of_an_answer_ends_it_first(server: Server) -> None:
    pieces: list[str] = []
    body = {"model": "red", "prompt": PROMPT, "max_tokens": 300, "stream": True}
    with server.client.stream(
        "POST", "/v1/completions", json=body | {"ignore_eos": True, "temperature": 0}
    ) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                pieces.append(line)
            if len(pieces) == 3:
                assert server.client.post("/models/unload", json={"model": "red"}).json()["users"]
        assert line == "" or line == "data: [DONE]"
    assert len(pieces) >= 300
    until(lambda: states(server)["red"] == "unloaded", "red has gone")


@pytest.mark.deep
def test_clients_that_ask_at_random_get_what_each_model_says(server: Server, base: Path) -> None:
    """Beside kills, loads and unloads; `python -m tests.e2e.fleet_campaign` does so for as long as one likes."""
    oracle = fleet_campaign.oracle_of({name: base / name for name in fleet_campaign.NAMES})
    campaign = fleet_campaign.Campaign(server, oracle, seed=1, most_workers=2)
    campaign.run_beside_kills(seconds=25.0)
    assert campaign.failures == []
    assert campaign.counts["looks"] > 0


def test_a_client_that_leaves_while_it_waits_frees_its_place(server: Server) -> None:
    for name in ("red", "blue"):
        generate(server, name, keep_alive=0)
    until(lambda: set(states(server).values()) <= {"unloaded", "failed"}, "all have gone")
    body = {"model": "green", "prompt": "x"}
    with contextlib.suppress(httpx.TimeoutException):
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=0.05)

    def cards() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = server.client.get("/models").json()["data"]
        return found

    until(lambda: all(c["waiting"] == c["users"] == 0 for c in cards()), "nobody waits")
    assert answer(server, "green")


def pss_bytes(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in rollup.splitlines() if line[:4] == "Pss:") << 10


def test_a_model_sleeps_gives_memory_back_and_answers_the_same_when_it_is_asked(
    server: Server,
) -> None:
    expected = answer(server, "red")
    answer(server, "blue")
    pid = next(w["pid"] for w in server.cluster()["workers"] if w["id"] == "red.decode-0")
    awake = pss_bytes(pid)
    for level in (1, 2):
        reply = server.client.post("/sleep", params={"level": level, "model": "red"})
        assert (reply.status_code, reply.content) == (200, b""), reply.text
        assert awake - pss_bytes(pid) > 15 << 20
        assert states(server)["red"] == "sleeping"
        asleep = [
            server.client.get("/is_sleeping", params=named).json()["is_sleeping"]
            for named in ({"model": "red"}, {"model": "blue"}, {})
        ]
        assert asleep == [True, False, False]
        red = server.cluster()["models"]["red"]
        assert red["workers"][0]["state"] == "asleep"
        assert red["sleep"]["level"] == level
        assert server.audit()["balanced"]
        assert answer(server, "red") == expected
        assert states(server)["red"] == "loaded"
    assert server.client.post("/sleep").status_code == 200
    assert server.client.get("/is_sleeping").json() == {"is_sleeping": True}
    assert server.client.post("/wake_up").status_code == 200
    assert set(server.client.get("/is_sleeping").json().values()) == {False}
    reply = server.client.post("/sleep", params={"model": "cut"})
    assert reply.status_code == 409
    assert next(w["pid"] for w in server.cluster()["workers"] if w["id"] == "red.decode-0") == pid


@pytest.mark.deep
def test_a_coordinator_that_comes_back_finds_the_models_that_are_in(server: Server) -> None:
    expected = answer(server, "green")
    pid = server.worker("decode")["pid"]
    os.kill(server.coordinator_pid(), signal.SIGKILL)

    def is_back() -> bool:
        try:
            return server.is_healthy() and states(server)["green"] == "loaded"
        except (httpx.TransportError, KeyError):
            return False

    until(is_back, "the coordinator has found green", PATIENCE_S)
    assert server.worker("decode")["pid"] == pid
    assert answer(server, "green") == expected

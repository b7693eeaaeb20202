"""Revisions of a model: who answers, and one that takes another's place while clients ask. Real processes, three small models."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from coordinator.cluster.traffic_split import LEAD
from deploy.cli import main
from tests.e2e.random_model import write_random_model
from tests.e2e.server import Server
from tests.patience import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.xdist_group("models")
HEADER = "x-baton-revision"
CONFIG = """
pd: 0p1d
dtype: float32
cpu-affinity: none
kv-cache-memory: 16MiB
models:
  - name: chat
    revisions:
      - {{revision: v1, model: {base}/red, weight: 50}}
      - {{revision: v2, model: {base}/blue, weight: 50}}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("red", "blue", "green")):
        (base / name).mkdir()
        write_random_model(base / name, seed)
    return base


@pytest.fixture(scope="module")
def server(base: Path) -> Iterator[Server]:
    file = base / "baton.yaml"
    file.write_text(CONFIG.format(base=base))
    with Server("--config", str(file)) as server:
        yield server


def ask(server: Server, prompt: str, model: str = "chat", **more: Any) -> httpx.Response:
    body = {"model": model, "prompt": prompt, "max_tokens": 6, "temperature": 0} | more
    reply = server.client.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    return reply


def said(reply: httpx.Response) -> str:
    text: str = reply.json()["choices"][0]["text"]
    return text


def states(server: Server) -> dict[str, str]:
    (one,) = server.client.get("/rollouts").json()["data"]
    return {each["revision"]: each["state"] for each in one["revisions"]}


def rollout(server: Server, *words: str) -> int:
    return main(["rollout", *words, "--url", server.url])


def test_requests_are_split_by_weight_and_a_conversation_stays(server: Server) -> None:
    prompts = [f"question {number}" for number in range(40)]
    first = {prompt: ask(server, prompt) for prompt in prompts}
    got = Counter(reply.headers[HEADER] for reply in first.values())
    assert abs(got["v1"] - 20) <= LEAD + 1
    for prompt in prompts[:10]:
        revision = first[prompt].headers[HEADER]
        assert ask(server, prompt).headers[HEADER] == revision
        assert said(ask(server, prompt, f"chat@{revision}")) == said(first[prompt])
    assert said(ask(server, "Hello", "chat@v1")) != said(ask(server, "Hello", "chat@v2"))
    sessions = [ask(server, prompt, user="one").headers[HEADER] for prompt in prompts[:6]]
    assert len(set(sessions)) == 1


def test_the_next_turn_of_a_chat_meets_who_answered_the_first(server: Server) -> None:
    for number in range(4):
        turns = [{"role": "user", "content": f"Hello, {number}"}]
        body = {"model": "chat", "messages": turns, "max_tokens": 4}
        before = server.client.post("/v1/chat/completions", json=body)
        turns += [before.json()["choices"][0]["message"], {"role": "user", "content": "Go on"}]
        after = server.client.post("/v1/chat/completions", json=body | {"messages": turns})
        assert after.headers[HEADER] == before.headers[HEADER]


def test_revisions_are_listed_and_others_are_refused_by_name(server: Server) -> None:
    ids = [card["id"] for card in server.client.get("/v1/models").json()["data"]]
    assert ids == ["chat", "chat@v1", "chat@v2"]
    assert set(server.cluster()["models"]) == {"chat@v1", "chat@v2"}
    told = server.client.get("/metrics").text
    assert 'baton_revision_share{model_name="chat",revision="v1"} 0.5' in told
    reply = server.client.post("/v1/completions", json={"model": "chat@v9", "prompt": "x"})
    assert reply.status_code == 404
    for body, named in (
        ({"model": "none", "revision": "v2"}, "none"),
        ({"model": "chat", "revision": "a/b", "source": "x"}, "revision"),
        ({"model": "chat", "revision": "v9"}, "source"),
        ({"model": "chat", "revision": "v2", "source": "x"}, "chat@v2"),
        ({"model": "chat", "revision": "v9", "source": "/nowhere"}, "/nowhere"),
        ({"model": "chat", "revision": "v9", "source": "x", "weight": 101}, "weight"),
    ):
        reply = server.client.post("/rollouts/start", json=body)
        assert reply.status_code in (400, 404, 409), reply.text
        assert named in reply.json()["error"]["message"]
    assert said(ask(server, "Hello", "chat@v1"))


def test_weights_change_from_the_next_conversation_on(server: Server) -> None:
    assert rollout(server, "weights", "chat", "v1=100") == 0
    assert {ask(server, f"all {n}").headers[HEADER] for n in range(10)} == {"v1"}
    reply = server.client.post("/rollouts/weights", json={"model": "chat", "weights": {"v1": 0}})
    assert reply.status_code == 400
    assert rollout(server, "weights", "chat", "v1=50", "v2=50") == 0


class Askers:
    """Clients that ask one after another until they are told to stop; what each got."""

    def __init__(self, server: Server, count: int) -> None:
        self.replies: list[tuple[str, httpx.Response]] = []
        self._server, self._over = server, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        with httpx.Client(base_url=self._server.url, timeout=2 * PATIENCE_S) as client:
            for turn in itertools.count():
                if self._over.is_set():
                    return
                prompt = f"client {number} turn {turn}"
                body = {"model": "chat", "prompt": prompt, "max_tokens": 6, "temperature": 0}
                self.replies.append((prompt, client.post("/v1/completions", json=body)))

    @property
    def revisions(self) -> set[str]:
        """Which answered so far."""
        return {reply.headers.get(HEADER, "") for _, reply in list(self.replies)}

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_a_rolling_upgrade_under_load_fails_nobody_and_mixes_nothing(
    server: Server, base: Path
) -> None:
    askers = Askers(server, 2)
    try:
        assert rollout(server, "start", "chat", "v3", str(base / "green")) == 0
        assert states(server)["v3"] == "serving"
        until(lambda: len(askers.replies) > 10, "clients have asked")
        assert rollout(server, "weights", "chat", "v1=1", "v2=1", "v3=1") == 0
        until(lambda: askers.revisions >= {"v1", "v2", "v3"}, "clients have met all three")
        whole = stream_while(server, "chat@v1", lambda: rollout(server, "promote", "chat", "v3"))
    finally:
        askers.stop()
    assert whole.endswith("data: [DONE]")
    assert [reply.status_code for _, reply in askers.replies if reply.status_code != 200] == []
    by_revision: dict[str, list[tuple[str, str]]] = {"v1": [], "v2": [], "v3": []}
    for prompt, reply in askers.replies:
        by_revision[reply.headers[HEADER]].append((prompt, said(reply)))
    assert all(by_revision.values())
    for prompt, text in by_revision["v3"]:
        assert said(ask(server, prompt, "chat@v3")) == text
    until(lambda: states(server)["v1"] == states(server)["v2"] == "unloaded", "the losers are gone")
    assert {worker["id"].partition(".")[0] for worker in server.cluster()["workers"]} == {"chat-v3"}
    assert ask(server, "after").headers[HEADER] == "v3"
    assert server.audit()["balanced"]


def stream_while(server: Server, model: str, act: Any) -> str:
    """What a long answer by that model says, in whose middle something is done; its last line."""
    body = {"model": model, "prompt": "Once", "max_tokens": 300, "temperature": 0}
    lines: list[str] = []
    with server.client.stream(
        "POST", "/v1/completions", json=body | {"stream": True, "ignore_eos": True}
    ) as reply:
        for line in filter(None, reply.iter_lines()):
            lines.append(line)
            if len(lines) == 3:
                act()
    assert not any("error" in json.loads(line[6:]) for line in lines[:-1])
    assert len(lines) >= 300
    return lines[-1]


def test_a_coordinator_that_comes_back_knows_the_revision_that_came_later(server: Server) -> None:
    expected = said(ask(server, "again"))
    pid = server.worker("decode")["pid"]
    os.kill(server.coordinator_pid(), signal.SIGKILL)

    def is_back() -> bool:
        try:
            return server.is_healthy()
        except httpx.TransportError:
            return False

    until(is_back, "the coordinator is back")
    reply = ask(server, "again")
    assert (said(reply), reply.headers[HEADER]) == (expected, "v3")
    assert server.worker("decode")["pid"] == pid


def test_what_came_with_the_server_is_loaded_again_by_its_name_alone(server: Server) -> None:
    assert rollout(server, "start", "chat", "v1", "--weight", "50") == 0

    assert rollout(server, "promote", "chat", "v1") == 0
    assert ask(server, "to and fro").headers[HEADER] == "v1"
    until(lambda: states(server)["v3"] == "unloaded", "v3 is gone")
    reply = server.client.post("/rollouts/rollback", json={"model": "chat"})
    assert reply.status_code == 409
    assert "baton rollout start chat v3 MODEL" in reply.json()["error"]["message"]
    assert {ask(server, f"after {n}").headers[HEADER] for n in range(4)} == {"v1"}

"""Two real `baton serve`: one is a deployment of the other's group, until it is killed; and files that stop a start."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from tests.e2e.server import MOCK, Server, free_port

pytestmark = pytest.mark.e2e
MODEL = "smollm2-135m"
HELLO: Any = [{"role": "user", "content": "Hello"}]
SECRET = "sk-of-the-back-server"


@pytest.fixture(scope="module")
def back():
    with Server("--api-key", SECRET, program=MOCK) as server:
        yield server


@pytest.fixture(scope="module")
def front(back, tmp_path_factory):
    places = [
        {
            "model": f"hosted_vllm/{MODEL}",
            "api_base": f"{back.url}/v1",
            "api_key": "os.environ/BACK_KEY",
            "order": 1,
        },
        {"model": f"baton/{MODEL}", "order": 2},
    ]
    file = tmp_path_factory.mktemp("router") / "config.yaml"
    entries = [{"model_name": "chat", "litellm_params": place} for place in places]
    file.write_text(yaml.safe_dump({"model_list": entries}), encoding="utf-8")
    options = ("--router-config", str(file))
    with Server(*options, program=MOCK, environment={"BACK_KEY": SECRET}) as server:
        yield server


def test_only_the_coordinator_has_the_other_servers_key(front):
    """In its environment: workers ask nobody."""
    told = {pid: Path(f"/proc/{pid}/environ").read_bytes() for pid in front.descendants()}
    assert SECRET.encode() in told.pop(front.coordinator_pid())
    assert told
    assert [pid for pid, environment in told.items() if SECRET.encode() in environment] == []


def stream(client: openai.OpenAI, **fields: Any) -> tuple[str, str]:
    """Text, and who said it."""
    reply = client.chat.completions.with_raw_response.create(
        model="chat", messages=HELLO, stream=True, temperature=0, seed=5, max_tokens=16, **fields
    )
    said = [chunk.choices[0].delta.content or "" for chunk in reply.parse() if chunk.choices]
    return "".join(said), reply.headers["x-baton-deployment"]


def test_who_answers_makes_no_difference_to_a_client(front, back):
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0) as client:
        own = client.chat.completions.create(
            model=MODEL, messages=HELLO, temperature=0, seed=5, max_tokens=16
        )
        text, who = stream(client)
        assert (text, who) == (own.choices[0].message.content, "chat/1")
        whole = client.chat.completions.create(
            model="chat", messages=HELLO, temperature=0, seed=5, max_tokens=16
        )
        assert whole.usage is not None
        assert own.usage is not None
        assert whole.usage.prompt_tokens == own.usage.prompt_tokens
        assert whole.usage.completion_tokens == own.usage.completion_tokens
        asked = {"model": "chat", "messages": HELLO, "temperature": 0, "seed": 5, "max_tokens": 16}
        message = front.client.post("/v1/messages", json=asked).json()
        assert message["content"] == [{"type": "text", "text": text}]
        for pid in (back.coordinator_pid(), back.process.pid):
            os.kill(pid, signal.SIGKILL)
        assert stream(client) == (text, "chat/2")
    view = front.client.get("/cluster/deployments").json()["data"]
    assert view[0]["failures"] >= 1
    assert SECRET not in str(view) + front.log() + front.client.get("/metrics").text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model_list: []", "model_list must be a list"),
        (
            "model_list: [{model_name: g, litellm_params: {model: baton/other}}]",
            "there is no model 'other' here",
        ),
        (
            "model_list: [{model_name: g, litellm_params: {model: openai/x, api_key: os.environ/NOPE}}]",
            "environment variable NOPE",
        ),
    ],
)
def test_a_bad_file_stops_the_start_with_its_name(tmp_path, text, told):
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    command = [*MOCK, "serve", "--router-config", str(file), "--port", str(free_port())]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr

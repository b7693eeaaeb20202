"""LiteLLM's proxy, as it comes, before two real servers: streams, tools' fields, usage and cost, and one that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import yaml

from tests.clients.test_clients_of_a_model import ENVIRONMENTS, needs
from tests.e2e.server import MOCK, Server, free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.deep, needs("litellm_proxy")]
MODEL = "smollm2-135m"
HELLO: Any = [{"role": "user", "content": "Hello"}]
READY_S = 120.0


@pytest.fixture(scope="module")
def backs() -> Iterator[list[Server]]:
    with (
        Server("--api-key", "k", program=MOCK) as one,
        Server("--api-key", "k", program=MOCK) as two,
    ):
        yield [one, two]


@pytest.fixture(scope="module")
def proxy(backs: list[Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its URL."""
    places = [
        {
            "model": f"hosted_vllm/{MODEL}",
            "api_base": f"{back.url}/v1",
            "api_key": "k",
            "input_cost_per_token": 0.001,
            "output_cost_per_token": 0.002,
        }
        for back in backs
    ]
    config = {
        "model_list": [{"model_name": "chat", "litellm_params": place} for place in places],
        "router_settings": {"num_retries": 2, "cooldown_time": 30, "allowed_fails": 0},
        "general_settings": {"master_key": "sk-master"},
    }
    file = tmp_path_factory.mktemp("litellm") / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    port = free_port()
    program = ENVIRONMENTS / "litellm_proxy" / "bin" / "litellm"
    command = [program, "--config", file, "--host", "127.0.0.1", "--port", str(port)]
    variables = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | variables,
            start_new_session=True,
        )
        try:
            _await_ready(f"http://127.0.0.1:{port}/health/liveliness", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _await_ready(url: str, process: subprocess.Popen[bytes], log: Any) -> None:
    until_s, waiter = time.monotonic() + READY_S, threading.Event()
    while time.monotonic() < until_s and process.poll() is None:
        try:
            if httpx.get(url, timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        waiter.wait(0.2)
    log.seek(0)
    raise AssertionError(f"LiteLLM's proxy is not ready:\n{log.read()[-4000:]}")


def asked(backs: list[Server]) -> list[float]:
    """How many answers each server has given."""
    headers = {"authorization": "Bearer k"}
    texts = [back.client.get("/metrics", headers=headers).text for back in backs]
    name = 'http_requests_total{handler="/v1/chat/completions",method="POST",status="2xx"}'
    found = [[line for line in text.splitlines() if line.startswith(name)] for text in texts]
    return [float(lines[0].split()[-1]) if lines else 0.0 for lines in found]


def test_two_servers_share_the_work_and_one_may_die(proxy: str, backs: list[Server]) -> None:
    with openai.OpenAI(base_url=f"{proxy}/v1", api_key="sk-master", max_retries=0) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="chat", messages=HELLO, max_tokens=8, extra_body={"ignore_eos": True}
        )
        whole = raw.parse()
        assert whole.usage is not None
        told = (whole.usage.prompt_tokens, whole.usage.completion_tokens)
        assert told[0] > 0
        assert told[1] == 8
        cost = float(raw.headers["x-litellm-response-cost"])
        assert cost == pytest.approx(0.001 * told[0] + 0.002 * told[1])
        ends: Counter[str | None] = Counter()
        for _ in range(24):
            stream = client.chat.completions.create(
                model="chat",
                messages=HELLO,
                max_tokens=8,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = list(stream)
            reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
            ends[next((reason for reason in reasons if reason), None)] += 1
        assert sum(ends.values()) == 24
        assert set(ends) <= {"stop", "length"}
        assert min(asked(backs)) > 0
        for pid in (backs[0].coordinator_pid(), backs[0].process.pid):
            os.kill(pid, signal.SIGKILL)
        for _ in range(12):
            answer = client.chat.completions.create(model="chat", messages=HELLO, max_tokens=8)
            assert answer.choices[0].finish_reason in ("stop", "length")
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="chat", messages=HELLO, temperature=99)

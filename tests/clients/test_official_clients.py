"""Official clients, untouched and each in its own environment (`make clients`), against a server on loopback."""

from __future__ import annotations

import asyncio
import json
from array import array
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn

from coordinator.cluster.scripted_service import ScriptedService, say
from coordinator.cluster.service_api import StreamEvent
from coordinator.edge.app import Parsers, create_app
from coordinator.edge.text.tokenizer import TextTokenizer
from deploy.processes.grammar_child import GrammarProcess
from protocol.finish import FinishReason
from protocol.sampling import Pooling
from tests.e2e.test_edge_clients import served

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".clients"
PATIENCE_S = 60.0
CALL = '<tool_call>{"name": "look", "arguments": {"at": "x"}}</tool_call>'
CALLED = ["look", {"at": "x"}]
TEMPLATE = "{% if tools %}{{ tools | tojson }}\n{% endif %}" + (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
)
SCRIPTS = {"text": "Hello world", "tools": CALL, "schema": '{"name": "Paris"}'}
STATES = [3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 12.0]
UNIT = pytest.approx([value / 13.0 for value in STATES])


def needs(client):
    python = ENVIRONMENTS / client / "bin" / "python"
    return pytest.mark.skipif(not python.exists(), reason=f"make clients makes {python}")


pytestmark = pytest.mark.e2e


@pytest.fixture
async def server(tmp_path):
    model = replace(served(tmp_path), pooling=Pooling.MEAN)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    service = ScriptedService()
    grammars = GrammarProcess(tmp_path, model.config.vocab_size, [2])
    parsers = Parsers("hermes")
    app = create_app(
        service=service, model=model, api_keys=["secret"], parsers=parsers, grammars=grammars
    )
    config = uvicorn.Config(app, port=0, http="httptools", log_config=None, lifespan="off")
    serving = uvicorn.Server(config)
    running = asyncio.create_task(serving.serve())
    while not serving.started:
        done, _ = await asyncio.wait({running}, timeout=0.01)
        assert not done, "the server ended"
    port = serving.servers[0].sockets[0].getsockname()[1]
    yield service, TextTokenizer.from_directory(tmp_path), f"http://127.0.0.1:{port}"
    serving.should_exit = True
    await asyncio.wait_for(running, PATIENCE_S)
    await grammars.close()


async def told_by(client, asked, server):
    service, tokenizer, url = server
    if asked == "embeddings":
        embedding = array("f", STATES).tobytes()
        service.default = [StreamEvent(finish_reason=FinishReason.LENGTH, embedding=embedding)]
    else:
        service.default = say(
            tokenizer.encode(SCRIPTS[asked], add_special_tokens=False), FinishReason.STOP
        )
    program = ROOT / "tests" / "clients" / "programs" / f"with_{client}.py"
    process = await asyncio.create_subprocess_exec(
        *(ENVIRONMENTS / client / "bin" / "python", program, url, asked),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    told, errors = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 0, errors.decode()
    return json.loads(told)


@needs("anthropic")
async def test_anthropic_reads_text(server):
    told = await told_by("anthropic", "text", server)
    assert {told["whole"], told["streamed"], told["asynchronous"]} == {"Hello world"}
    assert len({*told["usage"], told["counted"]}) == 1
    assert told["output"] == [len("Hello world")] * 2
    assert told["stop"] == ["end_turn", "end_turn"]
    assert (told["models"], told["refused"]) == (["tiny"], "not_found_error")


@needs("anthropic")
async def test_anthropic_reads_calls(server):
    told = await told_by("anthropic", "tools", server)
    assert told["calls"] == told["streamed"] == [CALLED]
    assert told["stop"] == ["tool_use", "tool_use"]


@needs("openai")
async def test_openai_reads_text(server):
    told = await told_by("openai", "text", server)
    words = {told[name] for name in ("chat", "whole", "streamed", "asynchronous", "read")}
    assert words == {"Hello world"}
    assert told["usage"][0] == told["usage"][1]
    assert told["grows"] is True
    assert told["events"] == [
        f"response.{name}"
        for name in (
            *("created", "in_progress", "output_item.added", "content_part.added"),
            *("output_text.delta", "output_text.done", "content_part.done"),
            *("output_item.done", "completed"),
        )
    ]


@needs("openai")
async def test_openai_reads_calls(server):
    told = await told_by("openai", "tools", server)
    assert told["calls"] == told["items"] == [CALLED, CALLED]
    assert told["stop"] == ["tool_calls", "tool_calls"]
    assert told["content"][0] is None


@needs("ollama")
async def test_ollama_reads_text(server):
    told = await told_by("ollama", "text", server)
    words = {told[name] for name in ("whole", "streamed", "asynchronous", "generated")}
    assert words == {"Hello world"}
    assert told["usage"][0] == told["usage"][1]
    assert told["stop"] == ["stop", "stop"]
    assert told["models"] == told["running"] == ["tiny"]
    assert (told["family"], told["refused"]) == ("llama", 404)


@needs("ollama")
async def test_ollama_reads_calls(server):
    told = await told_by("ollama", "tools", server)
    assert told["calls"] == [CALLED, CALLED]


@needs("openai")
async def test_openai_reads_embeddings(server):
    told = await told_by("openai", "embeddings", server)
    assert told["vectors"] == [UNIT] * 3
    assert told["asynchronous"] == UNIT
    assert told["short"] == pytest.approx([0.6, 0.8])
    assert told["usage"] == [len("Hello") + len("world"), 2]


@needs("ollama")
async def test_ollama_reads_embeddings(server):
    told = await told_by("ollama", "embeddings", server)
    assert told["vectors"] == [UNIT] * 2
    assert told["short"] == pytest.approx([0.6, 0.8])
    assert (told["usage"], told["old"]) == (len("Hello") + len("world"), STATES)


@pytest.mark.parametrize(
    ("client", "answers"),
    [
        pytest.param("openai", 4, marks=needs("openai")),
        pytest.param("anthropic", 3, marks=needs("anthropic")),
        pytest.param("ollama", 3, marks=needs("ollama")),
    ],
)
async def test_clients_make_objects_of_schemas(server, client, answers):
    told = await told_by(client, "schema", server)
    assert told["cities"] == ["Paris"] * answers
    assert all(one.sampling.constraint for one in server[0].generations)

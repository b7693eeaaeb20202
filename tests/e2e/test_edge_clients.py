"""The official client against a real server on loopback."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
import uvicorn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from coordinator.cluster.scripted_service import ScriptedService, say
from coordinator.edge.app import ServedModel, create_app
from coordinator.edge.text.tokenizer import TextTokenizer
from protocol.model_config import ModelConfig
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.e2e
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


def served(directory) -> ServedModel:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    config = ModelConfig(
        family="llama",
        vocab_size=256,
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        max_position_embeddings=512,
    )
    return ServedModel(("tiny",), directory, config, 512)


@pytest.fixture
async def world(tmp_path):
    model = served(tmp_path)
    service = ScriptedService()
    app = create_app(service=service, model=model, api_keys=["secret"])
    config = uvicorn.Config(app, port=0, http="httptools", log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:
        done, _ = await asyncio.wait({running}, timeout=0.01)
        assert not done, "the server ended"
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="secret", max_retries=0) as client:
        yield client, service, TextTokenizer.from_directory(tmp_path)
    server.should_exit = True
    await running


async def test_the_official_client_chats(world):
    client, service, tokenizer = world
    service.default = say(tokenizer.encode("Hi 🙂!", add_special_tokens=False))
    messages = [{"role": "user", "content": "Hello"}]
    whole = await client.chat.completions.create(model="tiny", messages=messages, max_tokens=9)
    assert whole.choices[0].message.content == "Hi 🙂!"
    assert whole.usage.prompt_tokens_details.cached_tokens == 0
    stream = await client.chat.completions.create(
        model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "Hi 🙂!"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 8


async def test_the_official_client_completes_lists_and_fails(world):
    client, service, tokenizer = world
    service.default = say(tokenizer.encode("yes", add_special_tokens=False))
    completion = await client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=9)
    assert [choice.text for choice in completion.choices] == ["yes", "yes"]
    assert [model.id async for model in client.models.list()] == ["tiny"]
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.completions.create(model="no", prompt="a")
    assert unknown.value.param == "model"
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(model="tiny", prompt="a", temperature=9)
    assert json.loads(refused.value.response.text)["error"]["param"] == "temperature"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_closed_connection_cancels_the_generation(world, stream):
    client, service, tokenizer = world
    service.default = say(tokenizer.encode("y", add_special_tokens=False), None)
    asking = asyncio.create_task(
        client.completions.create(model="tiny", prompt="a", stream=stream, max_tokens=9)
    )
    if stream:
        await (await asyncio.wait_for(asking, PATIENCE_S)).close()
    else:
        await until(lambda: service.streams)
        asking.cancel()
    await until(lambda: service.streams[0].cancel_reason is not None)
    assert service.streams[0].cancel_reason == "client disconnected"


async def until(condition):
    """Wait for what the server does meanwhile."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.wait({asyncio.create_task(asyncio.Event().wait())}, timeout=0.02)

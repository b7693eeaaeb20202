"""An edge over a scripted cluster, with a small byte-level tokenizer made on the spot."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import fastapi.dependencies.models
import httpx
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from coordinator.cluster.scripted_service import ScriptedService
from coordinator.edge.app import ServedModel, create_app
from coordinator.edge.text.tokenizer import TextTokenizer
from protocol.clock import ManualClock
from protocol.model_config import ModelConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CORPUS = [
    "Hello world! How are you today?",
    "naïve café 東京 🙂🙃 hello there",
    "END of the story\n",
] * 4
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool call>", normalized=False), AddedToken("plain")])
    return tokenizer


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    build_tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    config = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def tokenizer(model_directory) -> TextTokenizer:
    return TextTokenizer.from_directory(model_directory)


@pytest.fixture(scope="session")
def served_model(model_directory) -> ServedModel:
    config = ModelConfig(
        family="llama",
        vocab_size=400,
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        max_position_embeddings=256,
        eos_token_ids=(2,),
    )
    return ServedModel(("tiny", "tiny-alias"), model_directory, config, 256)


@pytest.fixture(autouse=True)
def no_application_is_kept() -> Iterator[None]:
    """FastAPI remembers the last thousands of endpoints, and each of them its application: a million objects for every full
    garbage collection to walk through."""
    yield
    for it in vars(fastapi.dependencies.models).values():
        if hasattr(it, "cache_clear"):
            it.cache_clear()


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def app(service, served_model, clock):
    return create_app(service=service, model=served_model, clock=clock)


@pytest.fixture
async def client(app):
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as connected:
        yield connected

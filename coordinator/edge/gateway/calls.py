"""A request at one deployment of another server: which path, which body, who reads the answer. Owns that choice alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from coordinator.edge.gateway.asking import AnthropicMessages, OpenAiChat
from coordinator.edge.gateway.asking_texts import OpenAiCompletion, OpenAiEmbedding
from coordinator.edge.gateway.hearing import AnthropicListener, CompletionListener, OpenAiListener
from coordinator.edge.gateway.upstream_run import Called, UpstreamRun
from coordinator.edge.gateway.vectors import EmbeddingRun, VectorListener
from coordinator.upstreams.settings import Provider

if TYPE_CHECKING:
    import httpx

    from coordinator.edge.answers.answer import AnswerRequest, RawPrompts
    from coordinator.edge.gateway.asking import Asking
    from coordinator.edge.gateway.hearing import Listener
    from coordinator.upstreams.settings import DeploymentSettings

CHARACTERS_PER_TOKEN = 4
"""Of usual text, where nobody has counted yet."""


def prompt_guess(asked: AnswerRequest) -> int:
    """How many tokens its prompts may have."""
    if asked.raw is not None:
        said = asked.raw.said
        return sum(
            len(it) // CHARACTERS_PER_TOKEN + 1 if isinstance(it, str) else len(it) for it in said
        )
    assert asked.conversation is not None, "a group answers conversations and raw prompts"
    return sum(map(len, asked.conversation.brought())) // CHARACTERS_PER_TOKEN + 1


def num_choices(asked: AnswerRequest) -> int:
    """How many answers it wants, to all its prompts."""
    num_prompts = 1 if asked.raw is None else len(asked.raw.said)
    return num_prompts * asked.choices_per_prompt


def run_at(asked: AnswerRequest, place: DeploymentSettings, http: httpx.AsyncClient) -> UpstreamRun:
    """A try there. Raises NotSayable."""
    if asked.raw is not None and asked.raw.is_embedded:
        return EmbeddingRun(_embedding(asked, asked.raw, place), http)
    path, asking, listener = _words(asked, place)
    body = orjson.dumps(asking.body())
    return UpstreamRun(Called(place, path, body, listener, prompt_guess(asked)), http)


def _embedding(asked: AnswerRequest, raw: RawPrompts, place: DeploymentSettings) -> Called:
    body = orjson.dumps(OpenAiEmbedding(asked, raw, place).body())
    listener = VectorListener(len(raw.said), raw.dimensions)
    return Called(place, "embeddings", body, listener, prompt_guess(asked))


def _words(asked: AnswerRequest, place: DeploymentSettings) -> tuple[str, Asking, Listener]:
    count = num_choices(asked)
    if asked.raw is not None:
        asking = OpenAiCompletion(asked, asked.raw, place)
        return "completions", asking, CompletionListener(count)
    talk = asked.conversation
    assert talk is not None, "a group answers conversations and raw prompts"
    if place.provider is Provider.ANTHROPIC:
        return "messages", AnthropicMessages(asked, talk, place), AnthropicListener(count)
    return "chat/completions", OpenAiChat(asked, talk, place), OpenAiListener(count)

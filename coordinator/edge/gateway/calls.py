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
"""Of words in ASCII, where nobody has counted yet. A digit and a sign is a token of its own, and so are two bytes of all else."""
BYTES_PER_TOKEN = 2
WORDS = bytes(range(0x41, 0x5B)) + bytes(range(0x61, 0x7B)) + b" \n\t_"
ASCII = bytes(range(0x80))
TOKENS_PER_TURN = 4
"""What a template writes around one."""
PIECES_PER_TOKEN, SPARE_PIECES = 2, 64
"""A server that says more pieces than these is not at its end where it should be."""


def prompt_guess(asked: AnswerRequest) -> int:
    """How many tokens its prompts may have: rather too many than too few, since limits are held by it."""
    if asked.raw is not None:
        return sum(guess(it) if isinstance(it, str) else len(it) for it in asked.raw.said)
    talk = asked.conversation
    assert talk is not None, "a group answers conversations and raw prompts"
    return guess("".join(talk.brought())) + TOKENS_PER_TURN * len(talk.turns)


def guess(text: str) -> int:
    """The same for one text."""
    told = text.encode("utf-8", "replace")
    others = told.translate(None, WORDS)
    foreign = len(others.translate(None, ASCII))
    words, signs = len(told) - len(others), len(others) - foreign
    return words // CHARACTERS_PER_TOKEN + signs + foreign // BYTES_PER_TOKEN + 1


def num_choices(asked: AnswerRequest) -> int:
    """How many answers it wants, to all its prompts."""
    num_prompts = 1 if asked.raw is None else len(asked.raw.said)
    return num_prompts * asked.choices_per_prompt


def run_at(
    asked: AnswerRequest, place: DeploymentSettings, http: httpx.AsyncClient, salt: str = ""
) -> UpstreamRun:
    """A try there; `salt` keeps the client's prefixes apart where the server can do that. Raises NotSayable."""
    if asked.raw is not None and asked.raw.is_embedded:
        return EmbeddingRun(_embedding(asked, asked.raw, place), http)
    path, asking, listener = _words(asked, place, salt)
    told = asking.body()
    most = told.get("max_tokens", told.get("max_completion_tokens"))
    pieces = None
    if most is not None:
        pieces = PIECES_PER_TOKEN * most * num_choices(asked) + SPARE_PIECES
    body = orjson.dumps(told)
    called = Called(place, path, body, listener, prompt_guess(asked), pieces)
    return UpstreamRun(called, http)


def _embedding(asked: AnswerRequest, raw: RawPrompts, place: DeploymentSettings) -> Called:
    body = orjson.dumps(OpenAiEmbedding(asked, raw, place).body())
    listener = VectorListener(len(raw.said), raw.dimensions)
    return Called(place, "embeddings", body, listener, prompt_guess(asked))


def _words(
    asked: AnswerRequest, place: DeploymentSettings, salt: str
) -> tuple[str, Asking, Listener]:
    count = num_choices(asked)
    if asked.raw is not None:
        asking = OpenAiCompletion(asked, asked.raw, place, salt)
        return "completions", asking, CompletionListener(count)
    talk = asked.conversation
    assert talk is not None, "a group answers conversations and raw prompts"
    if place.provider is Provider.ANTHROPIC:
        return "messages", AnthropicMessages(asked, talk, place), AnthropicListener(count)
    return "chat/completions", OpenAiChat(asked, talk, place, salt), OpenAiListener(count)

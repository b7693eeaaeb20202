"""What the first request of its kind finds ready: nothing large is imported, read or walked through for it on the event loop.

And no request of many prompts is one piece of work there.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from coordinator.cluster.service_api import StreamEvent
from coordinator.edge.app import create_app
from coordinator.edge.http import side_work
from coordinator.edge.http.limits import MAX_EMBEDDED
from coordinator.edge.http.side_work import MOST_AT_ONCE, LoopTurns
from coordinator.edge.text.prompts import INLINE_TEXTS, batches
from coordinator.edge.text.tokenizer import TextTokenizer
from protocol.finish import FinishReason
from protocol.sampling import Pooling, SampledToken

if TYPE_CHECKING:
    from fastapi import FastAPI

    from coordinator.cluster.scripted_service import ScriptedService
    from coordinator.edge.app import ServedModel
    from protocol.clock import ManualClock

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
TEXT = {"model": "tiny", "prompt": "Hello", "max_tokens": 4}
FIRST: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT | {"logprobs": True, "top_logprobs": 1},
    "/v1/completions": TEXT | {"logprobs": 1},
    "/v1/responses": {"model": "tiny", "input": "Hello", "max_output_tokens": 16},
    "/v1/messages": CHAT,
    "/v1/messages/count_tokens": {key: CHAT[key] for key in ("model", "messages")},
    "/v1/embeddings": {"input": ["Hello", "hello there"]},
    "/api/chat": {key: CHAT[key] for key in ("model", "messages")},
    "/api/generate": {key: TEXT[key] for key in ("model", "prompt")},
    "/api/embed": {"model": "tiny", "input": "Hello"},
    "/tokenize": {"prompt": "Hello"},
    "/detokenize": {"tokens": [5, 6]},
}


class Walked:
    """A library's tokenizer that counts who asks for its whole vocabulary."""

    def __init__(self, tokenizer: Any, walks: Counter[str]) -> None:
        self._tokenizer, self._walks = tokenizer, walks

    def __getattr__(self, name: str) -> Any:
        self._walks[name] += 1
        return getattr(self._tokenizer, name)


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What tokenizers made from now on are asked, once they are made."""
    counted, made = Counter[str](), TextTokenizer.__init__

    def make(self: TextTokenizer, serialized: bytes) -> None:
        made(self, serialized)
        self._tokenizer = Walked(self._tokenizer, counted)  # type: ignore[assignment]

    monkeypatch.setattr(TextTokenizer, "__init__", make)
    return counted


@pytest.fixture
def app(
    walks: Counter[str], service: ScriptedService, served_model: ServedModel, clock: ManualClock
) -> FastAPI:
    numbers = array("f", [1.0] * 8).tobytes()
    said = [SampledToken(token_id=5)]
    service.default = [
        StreamEvent(tokens=said, finish_reason=FinishReason.LENGTH, embedding=numbers)
    ]
    model = replace(served_model, pooling=Pooling.MEAN)
    made = create_app(service=service, model=model, clock=clock)
    walks.clear()
    return made


@pytest.mark.parametrize("path", FIRST)
async def test_a_first_request_walks_through_no_vocabulary_and_imports_nothing(
    client: httpx.AsyncClient, walks: Counter[str], path: str
) -> None:
    await client.get("/live")
    before = set(sys.modules)
    reply = await client.post(path, json=FIRST[path])
    assert reply.status_code == 200, reply.text
    assert not {"get_vocab", "to_str"} & set(walks)
    ours = {name for name in set(sys.modules) - before if not name.startswith("encodings")}
    assert not ours


@pytest.mark.parametrize("text", ["a", "Hello " * 20])
async def test_many_prompts_are_many_pieces_of_work(
    client: httpx.AsyncClient,
    service: ScriptedService,
    walks: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
) -> None:
    monkeypatch.setattr(side_work, "SLICE_S", 0.0)
    turns, take = Counter[str](), LoopTurns.turn

    async def turn(self: LoopTurns) -> None:
        turns["taken"] += 1
        await take(self)

    monkeypatch.setattr(LoopTurns, "turn", turn)
    reply = await client.post("/v1/embeddings", json={"input": [text] * MAX_EMBEDDED})
    assert reply.status_code == 200, reply.text
    assert len(service.generations) == len(reply.json()["data"]) == MAX_EMBEDDED
    assert turns["taken"] >= 2 * MAX_EMBEDDED + 1


async def test_many_streams_of_a_client_that_left_are_ended_in_turns(
    client: httpx.AsyncClient, service: ScriptedService
) -> None:
    """One of them fails, and with it the request: the others are cancelled, first some, then all."""
    service.default = []
    service.scripts.append([StreamEvent(error=ValueError("broken"))])  # type: ignore[arg-type]
    await client.post("/v1/embeddings", json={"input": ["a"] * MAX_EMBEDDED})
    streams = service.streams[1:]
    first = [it for it in streams if it.cancel_reason is not None]
    assert len(first) >= MOST_AT_ONCE - 1
    for _ in range(10_000):
        if all(it.cancel_reason is not None for it in streams):
            break
        await side_work.others_turn()
    assert all(it.cancel_reason is not None for it in streams)


def test_texts_are_taken_to_a_thread_by_the_handful() -> None:
    texts = [*("ab" for _ in range(INLINE_TEXTS + 1)), "c" * 50, "d" * 7, "e" * 7]
    told = list(batches(texts, 64))
    assert [len(some) for some in told] == [INLINE_TEXTS, 3, 1]
    assert [text for some in told for text in some] == texts

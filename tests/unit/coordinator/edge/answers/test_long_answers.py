"""Long answers are spelled beside the event loop, and say what short ones say."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import orjson
import pytest
from msgspec import Raw

from coordinator.cluster.service_api import StreamEvent
from coordinator.edge.answers.responses import PIECE_BYTES
from coordinator.edge.apis.ollama.dialects import ChatDialect as OllamaChat
from coordinator.edge.apis.openai.dialects.generation import ChatDialect, CompletionDialect
from coordinator.edge.apis.openai.dialects.prompt_scores import SpelledScores
from coordinator.edge.apis.openai.dialects.replies import (
    MAX_UNSPELLED,
    chat_logprobs,
    completion_logprobs,
    encode,
)
from coordinator.edge.apis.openai.responses.dialect import ResponsesDialect
from coordinator.edge.http.side_work import MAX_INLINE_TOLD
from protocol.finish import FinishReason
from protocol.sampling import SampledToken, ScoredToken, TokenLogprob

ALTERNATIVES = 20
LONG = MAX_INLINE_TOLD // (2 + ALTERNATIVES) + 1
WHOLE: dict[str, tuple[str, dict[str, Any], Any]] = {
    "chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 20},
        ChatDialect,
    ),
    "completion": ("/v1/completions", {"prompt": "x", "logprobs": 20}, CompletionDialect),
    "response": ("/v1/responses", {"input": "x", "top_logprobs": 20}, ResponsesDialect),
    "ollama": (
        "/api/chat",
        {
            "messages": [{"role": "user", "content": "x"}],
            "stream": False,
            "logprobs": True,
            "top_logprobs": 20,
        },
        OllamaChat,
    ),
}


def sampled(count: int) -> list[SampledToken]:
    top = [(70 + rank, -0.5 * rank) for rank in range(ALTERNATIVES)]
    return [
        SampledToken(token_id=40 + index % 50, logprob=TokenLogprob(logprob=-0.25, top=top))
        for index in range(count)
    ]


def script(count: int) -> list[StreamEvent]:
    """One token an event, and why the last is the last."""
    tokens = sampled(count)
    events = [StreamEvent(tokens=[token]) for token in tokens[:-1]]
    return [*events, StreamEvent(tokens=tokens[-1:], finish_reason=FinishReason.LENGTH)]


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize(("count", "is_beside"), [(LONG, True), (LONG - 1, False)])
async def test_where_an_answer_is_spelled(client, service, monkeypatch, name, count, is_beside):
    path, body, dialect = WHOLE[name]
    spelled, whole = [], dialect.whole
    loop_thread = threading.get_ident()

    def watched(*given):
        spelled.append(threading.get_ident())
        return whole(*given)

    monkeypatch.setattr(dialect, "whole", watched)
    service.scripts.append(script(count))
    reply = await client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    assert (spelled != [loop_thread]) is is_beside
    assert reply.content.count(b'"bytes"') in (0, count * (1 + ALTERNATIVES))
    assert reply.headers["content-length"] == str(len(reply.content))


@pytest.mark.parametrize("background", [False, True])
async def test_a_stream_whose_end_repeats_everything_spells_it_beside_the_loop(
    client, service, monkeypatch, background
):
    ends, end = [], ResponsesDialect.end

    def watched(*given):
        ends.append(threading.get_ident())
        return end(*given)

    monkeypatch.setattr(ResponsesDialect, "end", watched)
    service.scripts.append(script(LONG))
    body = {"input": "x", "top_logprobs": 20, "stream": True, "background": background}
    reply = await client.post("/v1/responses", json=body)
    assert ends != [threading.get_ident()]
    last = orjson.loads(reply.text.rstrip().rsplit("\ndata: ", 1)[1])
    assert last["type"] == "response.incomplete"
    told = last["response"]["output"][0]["content"][0]["logprobs"]
    assert len(told) == LONG
    assert len(told[0]["top_logprobs"]) == ALTERNATIVES
    kept = await client.get(f"/v1/responses/{last['response']['id']}")
    assert kept.json()["output"] == last["response"]["output"]


def test_tokens_encoded_one_by_one_say_the_same(tokenizer):
    tokens = sampled(MAX_UNSPELLED + 1)
    pieces = [tokens[:MAX_UNSPELLED], tokens[MAX_UNSPELLED:]]
    together = orjson.loads(encode(chat_logprobs(tokens, tokenizer)))["content"]
    apart = [orjson.loads(encode(chat_logprobs(piece, tokenizer)))["content"] for piece in pieces]
    assert together == apart[0] + apart[1]
    offsets = list(range(len(tokens)))
    whole = orjson.loads(encode(completion_logprobs(tokens, tokenizer, offsets)))
    parts = [
        orjson.loads(encode(completion_logprobs(piece, tokenizer, offsets[: len(piece)])))
        for piece in pieces
    ]
    assert whole["top_logprobs"] == parts[0]["top_logprobs"] + parts[1]["top_logprobs"]


def test_no_call_spells_many_tokens_of_many_choices(tokenizer):
    """A choice of each would be below any bound for one."""
    for tokens in (sampled(30), sampled(200)):
        chat = chat_logprobs(tokens, tokenizer).content
        completion = completion_logprobs(tokens, tokenizer, list(range(len(tokens)))).top_logprobs
        assert {type(told) for told in (*chat, *completion)} == {Raw}


async def test_a_large_body_is_sent_in_pieces(app, service):
    """One write of a hundred megabytes would be copied at once."""
    count = PIECE_BYTES // 500
    service.scripts.append(script(count))
    sent, forever = [], asyncio.Event()
    body = orjson.dumps(WHOLE["chat"][1])

    received = [{"type": "http.request", "body": body, "more_body": False}]

    async def one_body():
        if received:
            return received.pop()
        await forever.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"edge")],
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await app(scope, one_body, send)
    start, *pieces = sent
    declared = dict(start["headers"])[b"content-length"]
    assert len(pieces) > 1
    assert max(len(piece["body"]) for piece in pieces) == PIECE_BYTES
    assert [piece["more_body"] for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    whole = b"".join(piece["body"] for piece in pieces)
    assert int(declared) == len(whole)
    assert orjson.loads(whole)["usage"]["completion_tokens"] == count


def test_parts_of_characters_that_are_spelled_alike_do_not_take_each_others_numbers(tokenizer):
    """The text of each is U+FFFD, by which `top_logprobs` of completions tell them."""
    first, second = (tokenizer.encode(it, add_special_tokens=False)[0] for it in "東🙂")
    assert first != second
    assert tokenizer.token_text(first) == tokenizer.token_text(second) == "\ufffd"
    top = [(first, -0.5), (40, -1.0), (second, -2.0)]
    for token_id, own in ((first, -0.5), (second, -2.0)):
        token = SampledToken(token_id=token_id, logprob=TokenLogprob(logprob=own, top=top))
        told = orjson.loads(encode(completion_logprobs([token], tokenizer, [0])))
        assert told["top_logprobs"][0]["\ufffd"] == told["token_logprobs"][0] == own
        scores = SpelledScores([40, token_id], tokenizer, "", 3, None)
        scores.take([ScoredToken(logprob=own, rank=1, top=top)])
        assert scores.echoed is not None
        assert scores.echoed.token_logprobs == [None, own]
        assert orjson.loads(encode(scores.echoed.top_logprobs))[1]["\ufffd"] == own

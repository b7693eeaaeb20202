"""Answers that keep to a grammar, from real processes: the same tokens from one pool and from two, whoever dies meanwhile."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from tests.e2e.grammar_cases import ASKED, MESSAGES, PERSON, SAMPLED
from tests.e2e.kill_campaign import campaign
from tests.e2e.kill_campaign import whole as whole_answer
from tests.e2e.server import Server
from tests.marks import deep

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("model")]
SEEDS = (1,)
CAMPAIGN = ("json_schema", "regex", "choice", "named", "auto", "several", "several of a schema")


def whole(name: str, text: str) -> bool:
    """Whether a text is a complete answer to what was asked."""
    if name == "regex":
        return re.fullmatch(r"[A-Z][a-z]{2,8} is \d{1,3} years old\.", text) is not None
    if name == "choice":
        return text in ("positive", "negative", "neutral")
    if name == "gbnf":
        return re.fullmatch(r"<[a-z]{1,9}>[0-9]{2}", text) is not None
    if name in ("required", "named", "auto") or text.startswith("["):
        calls = json.loads(text) if text.startswith("[") else []
        assert calls or name == "auto"
        assert name != "named" or [call["name"] for call in calls] == ["drop"]
        for call in calls:
            jsonschema.validate(json.loads(call["arguments"]), PERSON)
        return True
    if name == "tags":
        assert text.startswith("<call>") and text.endswith("</call>")  # noqa: PT018 - one shape
        text = text.removeprefix("<call>").removesuffix("</call>")
    jsonschema.validate(json.loads(text), PERSON)
    return True


def answer(server: Server, name: str, seed: int, **more: Any) -> tuple[list[int], str, str]:
    reply = server.chat(messages=MESSAGES, seed=seed, **ASKED[name], **SAMPLED | more)
    choice = reply["choices"][0]
    message, reason = choice["message"], choice["finish_reason"]
    calls = [call["function"] for call in message.get("tool_calls", ())]
    assert (reason == "tool_calls") == bool(calls and reason != "length")
    said = json.dumps(calls) if calls else message["content"]
    return choice["token_ids"], said, "stop" if reason == "tool_calls" else reason


def answers(server: Server) -> dict[tuple[str, int], tuple[list[int], str, str]]:
    return {(name, seed): answer(server, name, seed) for name in ASKED for seed in SEEDS}


@pytest.fixture(scope="module")
def alone() -> dict[tuple[str, int], tuple[list[int], str, str]]:
    """What one pool says."""
    with Server("--pd", "0p1d", "--kv-cache-memory", "256MiB") as server:
        return answers(server)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--pd", "1p1d", "--kv-cache-memory", "256MiB") as server:
        yield server


def test_what_one_pool_says_keeps_to_its_grammar(alone: dict[Any, Any]) -> None:
    ends = [end for _, _, end in alone.values()]
    assert ends.count("stop") >= len(ends) // 2
    for (name, _), (_, text, end) in alone.items():
        assert end == "length" or whole(name, text), (name, text)


def test_two_pools_say_the_same(server: Server, alone: dict[Any, Any]) -> None:
    assert answers(server) == alone
    assert server.audit()["balanced"]


def test_choices_logprobs_penalties_and_streams_keep_to_it_too(server: Server) -> None:
    extra = {"n": 2, "logprobs": True, "top_logprobs": 5, "frequency_penalty": 0.3, "min_tokens": 4}
    asked = {**ASKED["json_schema"], **SAMPLED, **extra, "seed": 7, "logit_bias": {"107": 1.5}}
    reply = server.chat(messages=MESSAGES, **asked)
    for choice in reply["choices"]:
        assert choice["finish_reason"] == "length" or whole(
            "json_schema", choice["message"]["content"]
        )
        told = choice["logprobs"]["content"]
        assert all(entry["logprob"] <= 0.0 and entry["logprob"] > -1e4 for entry in told)
        assert all(other["logprob"] > -1e4 for entry in told for other in entry["top_logprobs"])
    texts = ["", ""]
    with server.client.stream(
        "POST", "/v1/chat/completions", json={"messages": MESSAGES, "stream": True, **asked}
    ) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == [choice["message"]["content"] for choice in reply["choices"]]


def in_dialects() -> dict[str, tuple[str, dict[str, Any], tuple[str | int, ...], tuple[str, str]]]:
    """Path, what is asked, where the text stands in the answer, and what says that it is complete."""
    form = {"type": "json_schema", "name": "p", "schema": PERSON}
    sampled = {"temperature": 1.0, "top_p": 0.95, "seed": 1}
    options = {**sampled, "num_predict": 64}
    ollama = {"messages": MESSAGES, "stream": False, "format": PERSON, "options": options}
    return {
        "responses": (
            "/v1/responses",
            {"input": MESSAGES, "max_output_tokens": 64, "text": {"format": form}, **sampled},
            ("output", 0, "content", 0, "text"),
            ("status", "completed"),
        ),
        "messages": (
            "/v1/messages",
            {"messages": MESSAGES, "max_tokens": 64, "output_config": {"format": form}, **sampled},
            ("content", 0, "text"),
            ("stop_reason", "end_turn"),
        ),
        "ollama": ("/api/chat", ollama, ("message", "content"), ("done_reason", "stop")),
    }


@pytest.mark.parametrize("name", in_dialects())
def test_a_schema_means_the_same_in_every_dialect(
    server: Server, alone: dict[Any, Any], name: str
) -> None:
    path, body, place, (end, well) = in_dialects()[name]
    reply = server.client.post(path, json={"model": "smollm2-135m", **body})
    assert reply.status_code == 200, reply.text
    told = reply.json()
    text = told
    for step in place:
        text = text[step]
    assert text == alone["json_schema", 1][1]
    assert (told[end] == well) == (alone["json_schema", 1][2] == "stop")


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (
            "/v1/responses",
            {
                "input": "x",
                "text": {"format": {"type": "json_schema", "schema": {"uniqueItems": True}}},
            },
            "text.format",
        ),
        ("/v1/responses", {"input": "x", "text": {"format": {"type": "yaml"}}}, "text.format.type"),
        (
            "/v1/messages",
            {
                "messages": MESSAGES,
                "max_tokens": 4,
                "output_config": {"format": {"type": "json_schema"}},
            },
            "output_config.format.schema",
        ),
        ("/api/chat", {"messages": MESSAGES, "format": "yaml"}, "format"),
    ],
)
def test_what_a_dialect_cannot_keep_to_is_refused_by_name(
    server: Server, path: str, body: dict[str, Any], field: str
) -> None:
    reply = server.client.post(path, json={"model": "smollm2-135m", **body})
    assert reply.status_code == 400, reply.text
    assert field in reply.text


def test_what_cannot_be_kept_to_is_refused_by_name(server: Server) -> None:
    for asked, told in (
        ({"guided_json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"guided_regex": "(?=a)b"}, "guided_regex"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "exclude each other"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "exactly one"),
        ({"guided_regex": "a" * 70_000}, "65536 bytes"),
    ):
        body = {"prompt": "x", "max_tokens": 4, **asked}
        reply = server.client.post("/v1/completions", json=body)
        assert reply.status_code == 400
        assert told in reply.text


def ids_with_a_kill(server: Server, name: str, place: int, role: str) -> list[int]:
    """What a client reads while the worker of a role dies, as soon as so many tokens are here."""
    server.await_pair()
    token_ids: list[int] = []
    is_killed = False
    body = {"messages": MESSAGES, "seed": 1, "stream": True, **ASKED[name], **SAMPLED}
    with server.client.stream("POST", "/v1/chat/completions", json=body) as stream:
        for line in stream.iter_lines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line[6:])["choices"]:
                token_ids += choice.get("token_ids") or []
            if len(token_ids) >= place and not is_killed:
                os.kill(server.worker(role)["pid"], signal.SIGKILL)
                is_killed = True
    assert is_killed
    return token_ids


@pytest.mark.parametrize(
    ("place", "role", "name"),
    [
        (3, "decode", "json_schema"),
        (1, "prefill", "required"),
        (14, "decode", "auto_or_schema"),
        deep(0, "decode", "required"),
        deep(1, "prefill", "json_schema"),
        deep(2, "decode", "json_schema"),
        deep(5, "decode", "required"),
        deep(9, "decode", "json_schema"),
        deep(20, "decode", "required"),
    ],
)
def test_a_kill_changes_no_token(
    server: Server, alone: dict[Any, Any], place: int, role: str, name: str
) -> None:
    """In the middle of an answer: who goes on has only the text of the grammar and the tokens."""
    assert ids_with_a_kill(server, name, place, role) == alone[name, 1][0]


@pytest.mark.deep
def test_a_death_at_many_tokens_at_once_changes_none() -> None:
    """`python -m tests.e2e.kill_campaign` goes on until a worker has died at every token."""
    memory = ("--kv-cache-memory", "512MiB")
    with Server("--pd", "0p1d", *memory) as server:
        expected = {name: whole_answer(server, name) for name in CAMPAIGN}
    assert expected["auto"][0]["finish_reason"] == "tool_calls"
    servers = functools.partial(Server, "--pd", "1p1d", *memory)
    outcome = campaign(servers, expected, waves=1, streams=32)
    assert not outcome.differences
    assert outcome.replayed >= len(CAMPAIGN)

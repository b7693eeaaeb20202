"""What other servers are told of limits and tenants, and what comes of those that say more than they were asked for."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest

from coordinator.accounts.accounts import Accounts, AccountSettings
from coordinator.accounts.terms import KeyTerms
from coordinator.edge.answers.answer import AnswerRequest, SamplingWishes
from coordinator.edge.gateway.asking import OpenAiAsking
from coordinator.edge.gateway.calls import guess
from coordinator.upstreams.settings import BASES, DeploymentSettings, Provider
from protocol.clock import SystemClock
from tests.unit.coordinator.edge.gateway.scripted_upstream import (
    anthropic_events,
    chunk,
    endless,
    openai_answer,
    stream,
    upstream,
)
from tests.unit.coordinator.edge.gateway.test_model_groups import HELLO, chat, edge, entry

ANSWERED = [({"type": "text", "text": ""}, [{"type": "text_delta", "text": "x"}])]
CHAT = "/v1/chat/completions"
NAMED = {
    CHAT: {"messages": HELLO, "max_tokens": 7},
    "/v1/messages": {"messages": HELLO, "max_tokens": 7},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 7},
    "/api/chat": {"messages": HELLO, "options": {"num_predict": 7}, "stream": False},
    "/api/generate": {"prompt": "Hello", "options": {"num_predict": 7}, "stream": False},
    "/v1/completions": {"prompt": "Hello", "max_tokens": 7},
}


@pytest.mark.parametrize("path", NAMED)
@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
async def test_every_dialects_limit_is_told_as_one(served_model, tmp_path, path, provider):
    text = {"index": 0, "text": "x", "finish_reason": "length"}
    answer = (
        stream(b"data: " + json.dumps({"choices": [text]}).encode() + b"\n\n", b"data: [DONE]\n\n")
        if path == "/v1/completions"
        else openai_answer("x")
    )
    async with (
        upstream(answer) as server,
        edge(served_model, tmp_path, entry(server, provider=provider)) as client,
    ):
        reply = await client.post(path, json=NAMED[path] | {"model": "g"})
    assert reply.status_code == 200, reply.text
    body = server.asked[0][2]
    assert body["max_tokens"] == 7
    assert body.keys() <= {"model", "stream", "stream_options", "messages", "prompt", "max_tokens"}


@pytest.mark.parametrize(
    ("base", "said", "field"),
    [
        (BASES[Provider.OPENAI], "max_output_tokens", "max_completion_tokens"),
        (BASES[Provider.OPENAI], "max_tokens", "max_tokens"),
        ("http://other/v1", "max_output_tokens", "max_tokens"),
        ("http://other/v1", "max_completion_tokens", "max_completion_tokens"),
    ],
)
def test_a_limit_has_a_name_that_the_server_knows(base, said, field):
    asked = AnswerRequest(
        arrival_s=0.0,
        operation="chat",
        reply_id="x",
        model="g",
        prompts=[],
        prompt_field="messages",
        wishes=SamplingWishes(max_tokens=7, max_tokens_field=said),
        default_max_tokens=9,
    )
    place = DeploymentSettings(
        deployment_id="g/1", group="g", provider=Provider.OPENAI, model="m", api_base=base
    )
    asking = OpenAiAsking(asked, place)
    asking.add_sampling()
    assert asking.told[field] == 7
    assert [name for name in asking.told if name.startswith("max_")] == [field]


async def keyed(served_model, tmp_path, entries, ask, *terms):
    """What `ask` makes of a client and the headers of new keys."""
    accounts = Accounts.open(AccountSettings(tmp_path / "keys.db"), SystemClock())
    accounts.start(asyncio.get_running_loop())
    secrets = [(await accounts.create(one)).secret for one in terms]
    headers = [{"authorization": f"Bearer {secret}"} for secret in secrets]
    options = {"accounts": accounts, "clock": SystemClock()}
    async with edge(served_model, tmp_path, *entries, **options) as client:
        await ask(client, *headers)
    await accounts.close()


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({"tokens_per_minute": 10_000}, 1024),
        ({"budget_tokens": 10_000}, 1024),
        ({"budget": 1.0}, 1024),
        ({"requests_per_minute": 5}, None),
    ],
)
async def test_what_is_held_for_an_answer_is_its_limit(served_model, tmp_path, limits, most):
    async def ask(client, headers):
        reply = await client.post(CHAT, json={"model": "g", "messages": HELLO}, headers=headers)
        assert reply.status_code == 200, reply.text

    async with upstream(openai_answer("x")) as server:
        terms = KeyTerms(**limits)
        await keyed(served_model, tmp_path, [entry(server)], ask, terms)
    assert server.asked[0][2].get("max_tokens") == most


async def test_where_tokens_a_minute_are_limited_answers_are_too(served_model, tmp_path):
    answer = stream(*anthropic_events(ANSWERED, "end_turn"))
    async with upstream(openai_answer("x")) as first, upstream(answer) as second:
        entries = (entry(first, tpm=5000), entry(second, "a", "anthropic", tpm=5000))
        async with edge(served_model, tmp_path, *entries) as client:
            assert (await chat(client)).status_code == 200
            assert (await chat(client, model="a")).status_code == 200
    assert first.asked[0][2]["max_tokens"] == second.asked[0][2]["max_tokens"] == 1024


# ---- tenants


async def test_tenants_prefixes_are_apart_at_servers_that_can_do_that(served_model, tmp_path):
    async def ask(client, *keys):
        for headers, salt in itertools.product(keys, (None, "own")):
            body = {"model": "g", "messages": HELLO} | ({"cache_salt": salt} if salt else {})
            assert (await client.post(CHAT, json=body, headers=headers)).status_code == 200

    terms = [KeyTerms(tenant=name) for name in ("a", "a", "b")]
    terms += [KeyTerms(tenant="c", shared_cache="all"), KeyTerms(tenant="d", shared_cache="all")]
    async with upstream(openai_answer("x")) as server:
        await keyed(served_model, tmp_path, [entry(server, provider="hosted_vllm")], ask, *terms)
    told = [body["cache_salt"] for _, _, body in server.asked]
    first, second, third, fourth, fifth = zip(told[::2], told[1::2], strict=True)
    assert first == second
    assert fourth == fifth
    assert len({*first, *third, *fourth}) == 6
    assert all(len(salt) == 32 for salt in told)


async def test_a_salt_is_refused_where_nobody_keeps_prefixes_apart(served_model, tmp_path):
    async def ask(client, headers):
        body = {"model": "g", "messages": HELLO}
        assert (await client.post(CHAT, json=body, headers=headers)).status_code == 200
        reply = await client.post(CHAT, json=body | {"cache_salt": "x"}, headers=headers)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "cache_salt")

    async with upstream(openai_answer("x")) as server:
        await keyed(served_model, tmp_path, [entry(server)], ask, KeyTerms(tenant="a"))
    assert len(server.asked) == 1
    assert "cache_salt" not in server.asked[0][2]


async def test_without_keys_no_salt_is_told_but_the_clients(served_model, tmp_path):
    async with (
        upstream(openai_answer("x")) as server,
        edge(served_model, tmp_path, entry(server, provider="hosted_vllm")) as client,
    ):
        await chat(client)
        await chat(client, cache_salt="x")
    assert "cache_salt" not in server.asked[0][2]
    assert len(server.asked[1][2]["cache_salt"]) == 32


# ---- servers without an end


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_answer_that_goes_on_after_its_limit_is_broken_off(
    served_model, tmp_path, is_stream
):
    async with (
        upstream(endless(chunk({"content": "x"}))) as server,
        edge(served_model, tmp_path, entry(server), router={"num_retries": 0}) as client,
    ):
        reply = await chat(client, max_tokens=10, stream=is_stream)
        await server.hung_up.wait()
    assert reply.status_code == (200 if is_stream else 502)
    assert "goes on after as many tokens" in reply.text
    assert reply.text.count('"content":"x"') <= 2 * 10 + 64


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (chunk({"content": "x" * 10_000}), "larger than 1000000 bytes"),
        (b": still here\n\n" * 50, "says nothing in 100000 bytes"),
        (b'data: {"choices": []}\n\n' * 50, "says nothing in 100000 bytes"),
    ],
)
async def test_an_answer_without_a_limit_has_one_of_bytes(
    served_model, tmp_path, monkeypatch, event, told
):
    monkeypatch.setattr("coordinator.edge.gateway.upstream_run.MAX_STREAM_BYTES", 1_000_000)
    monkeypatch.setattr("coordinator.edge.gateway.upstream_run.MAX_SILENT_BYTES", 100_000)
    async with (
        upstream(endless(event)) as server,
        edge(served_model, tmp_path, entry(server), router={"num_retries": 0}) as client,
    ):
        reply = await chat(client)
        await server.hung_up.wait()
    assert reply.status_code == 502
    assert told in reply.text


@pytest.mark.parametrize(
    ("text", "least"),
    [
        ("The quick brown fox jumps over the lazy dog. " * 20, 200),
        ("日本語の文章はトークンが多い。" * 20, 300),
        ("Быстрая коричневая лиса " * 20, 100),
        ("3.14159265358979 " * 20, 320),
        ("🙂🙃" * 50, 200),
        ("", 0),
    ],
)
def test_a_prompt_is_not_guessed_too_short(text, least):
    assert least <= guess(text) <= 2 * len(text.encode()) + 1

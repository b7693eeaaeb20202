"""Which model a request is, for its key, its price and the ledger, whatever its client calls it."""

from __future__ import annotations

import dataclasses

import pytest

from coordinator.accounts.terms import KeyTerms
from coordinator.edge.http.route_list import RouteList
from tests.unit.coordinator.edge.http.all_options import everything
from tests.unit.coordinator.edge.http.test_keys import OPEN, bearer, edge, needed

GENERATE = {"prompt": "Hello", "stream": False}
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "stream": False}


@pytest.mark.parametrize(("path", "body"), [("/api/generate", GENERATE), ("/api/chat", CHAT)])
async def test_a_name_with_ollamas_tag_has_the_price_and_the_terms_of_the_served_one(
    served_model, tmp_path, path, body
):
    prices = ("tiny=1000/1000", "tiny-alias=0/0")
    async with edge(served_model, tmp_path, prices=prices) as (client, accounts, _):
        made = await accounts.create(KeyTerms(models=("tiny",), budget=1000))
        headers = bearer(made.secret)
        reply = await client.post(path, json=body | {"model": "tiny:latest"}, headers=headers)
        assert reply.json()["model"] == "tiny:latest"
        (row,) = (await client.get("/usage?group_by=request", headers=headers)).json()["data"]
        assert row["model"] == "tiny"
        assert row["cost"] == f"0.{(row['input_tokens'] + row['output_tokens']) * 1_000_000:09d}"
        asked = body | {"model": "tiny-alias:latest"}
        assert (await client.post(path, json=asked, headers=headers)).status_code == 403


async def test_a_served_name_that_ends_in_the_tag_is_itself(served_model, tmp_path):
    model = dataclasses.replace(served_model, served_names=("small:latest",))
    async with edge(model, tmp_path) as (client, accounts, _):
        headers = bearer((await accounts.create(KeyTerms(models=("small:latest",)))).secret)
        body = GENERATE | {"model": "small:latest"}
        reply = await client.post("/api/generate", json=body, headers=headers)
        assert reply.status_code == 200


MESSAGES: dict[str, object] = {"messages": [{"role": "user", "content": "Hello"}]}
ASKED: dict[tuple[str, str], dict[str, object] | None] = {
    ("POST", "/v1/chat/completions"): MESSAGES,
    ("POST", "/v1/completions"): {"prompt": "Hello"},
    ("POST", "/v1/responses"): {"input": "Hello"},
    ("POST", "/v1/embeddings"): {"input": "Hello"},
    ("POST", "/v1/messages"): MESSAGES | {"max_tokens": 5},
    ("POST", "/v1/messages/count_tokens"): MESSAGES,
    ("POST", "/tokenize"): {"prompt": "Hello"},
    ("POST", "/detokenize"): {"tokens": [5]},
    ("GET", "/tokenizer_info"): None,
    ("GET", "/v1/models/{model_id:path}"): None,
    ("POST", "/api/chat"): MESSAGES,
    ("POST", "/api/generate"): {"prompt": ""},
    ("POST", "/api/show"): {},
    ("POST", "/api/embed"): {},
    ("POST", "/api/embeddings"): {},
}
"""What says something of a model: refused to a key of others."""
LISTS = {
    ("GET", "/v1/models"): "data",
    ("GET", "/api/tags"): "models",
    ("GET", "/api/ps"): "models",
}
MODELLESS = {
    *("/version", "/openapi.json", "/docs", "/api/version"),
    *(f"/v1/responses/{{response_id}}{tail}" for tail in ("", "/input_items", "/cancel")),
}
"""Routes that say nothing of a model, or only of what the same tenant asked."""


def inference_routes(app):
    for route in RouteList(app.routes):
        if needed(route.path) == "inference" and route.path not in OPEN | MODELLESS:
            for method in (route.methods or set()) - {"HEAD", "OPTIONS"}:
                yield method, route.path


async def test_a_key_of_other_models_learns_of_none_and_has_nothing_computed(
    served_model, tmp_path, monkeypatch
):
    async def computed(*_, **__):
        raise AssertionError("a prompt was read")

    for name in ("chat", "turns", "text"):
        monkeypatch.setattr(f"coordinator.edge.text.prompts.PromptReader.{name}", computed)
    async with edge(served_model, tmp_path) as (client, accounts, app):
        headers = bearer((await accounts.create(KeyTerms(models=("other",)))).secret)
        asked = set()
        for method, template in inference_routes(app):
            what = (method, template)
            path = template.replace("{model_id:path}", "tiny")
            versions: list[dict[str, str]] = [{}, {"anthropic-version": "2023-06-01"}]
            for version in versions if "/models" in path else versions[:1]:
                for model in ("tiny", None) if method == "POST" else (None,):
                    told = ASKED.get(what)
                    body = None if told is None else told | {"model": model}
                    reply = await client.request(method, path, json=body, headers=headers | version)
                    if what in LISTS:
                        assert (reply.status_code, reply.json()[LISTS[what]]) == (200, []), what
                        assert "tiny" not in reply.text
                    else:
                        assert reply.status_code == 403, (what, reply.text)
            asked.add(what)
        assert asked == {*ASKED, *LISTS}


async def test_a_name_that_is_not_served_is_told_what_the_key_may_use_only(served_model, tmp_path):
    async with edge(served_model, tmp_path) as (client, accounts, _):
        for models, told in (
            (("elsewhere",), "none that this API key may use"),
            (("tiny-alias", "elsewhere"), "served: tiny-alias"),
            ((), "served: tiny, tiny-alias"),
        ):
            headers = bearer((await accounts.create(KeyTerms(models=models))).secret)
            body = {"prompt": "Hello", "model": "elsewhere"}
            reply = await client.post("/v1/completions", json=body, headers=headers)
            assert reply.status_code == 404
            assert reply.json()["error"]["message"].endswith(told)


NEVER = "never-there"
GUESSED = ("tiny", "tiny-alias", "group", "acme-legal", "acme:latest")
"""What others are served: a model and its other name, a group, an adapter, a name with a tag of its own."""


async def test_who_guesses_names_of_others_learns_not_even_that_they_are_there(
    served_model, tmp_path
):
    options = everything(tmp_path)
    for name in GUESSED[-2:]:
        await options["adapters"].load(name, "/somewhere")
    async with edge(served_model, tmp_path, **options) as (client, accounts, _):
        headers = bearer((await accounts.create(KeyTerms(models=("other",)))).secret)

        async def told(method, template, name):
            body = ASKED.get((method, template))
            path = template.replace("{model_id:path}", name)
            body = None if body is None else body | {"model": name}
            answers = [await client.request(method, path, json=body, headers=headers)]
            if "/models" in path:
                version = headers | {"anthropic-version": "2023-06-01"}
                answers.append(await client.request(method, path, headers=version))
            bare = name.removesuffix(":latest")
            return [
                (one.status_code, one.text.replace(name, "NAME").replace(bare, "NAME"))
                for one in answers
            ]

        for method, template in ASKED:
            if template == "/tokenizer_info":
                continue
            for name in GUESSED:
                never = NEVER + (":latest" if name.endswith(":latest") else "")
                mine = await told(method, template, name)
                assert mine == await told(method, template, never), (template, name)
                assert all(status == 403 for status, _ in mine), (template, mine)
            for _, text in await told(method, template, NEVER):
                assert not any(name in text for name in GUESSED)


async def test_who_names_no_model_is_not_told_whose_answers(served_model, tmp_path):
    async with edge(served_model, tmp_path) as (client, accounts, _):
        headers = bearer((await accounts.create(KeyTerms(models=("other",)))).secret)
        reply = await client.post("/v1/completions", json={"prompt": "Hello"}, headers=headers)
        assert reply.status_code == 403
        assert reply.json()["error"]["code"] == "model_not_allowed"
        assert "tiny" not in reply.text


async def test_lists_have_the_models_of_the_key(served_model, tmp_path):
    async with edge(served_model, tmp_path) as (client, accounts, _):
        headers = bearer((await accounts.create(KeyTerms(models=("tiny-alias",)))).secret)
        for path, field, name in (
            ("/v1/models", "data", "id"),
            ("/api/tags", "models", "name"),
            ("/api/ps", "models", "model"),
        ):
            told = (await client.get(path, headers=headers)).json()[field]
            assert [card[name] for card in told] == ["tiny-alias"]
        assert (await client.get("/tokenizer_info", headers=headers)).status_code == 200
        version = headers | {"anthropic-version": "2023-06-01"}
        page = (await client.get("/v1/models", headers=version)).json()
        assert page["first_id"] == page["last_id"] == "tiny-alias"
        body = {"model": "tiny-alias"}
        reply = await client.post("/api/generate", json=body, headers=headers)
        assert (reply.json()["model"], reply.json()["done_reason"]) == ("tiny-alias", "load")


GENERATING = {
    "/v1/chat/completions": MESSAGES | {"response_format": {"type": "json_object"}},
    "/v1/completions": {"prompt": "Hello", "guided_regex": "a+"},
    "/v1/responses": {"input": "Hello", "text": {"format": {"type": "json_object"}}},
    "/v1/messages": MESSAGES | {"max_tokens": 5},
    "/api/chat": MESSAGES | {"format": "json"},
    "/api/generate": {"prompt": "Hello", "format": "json"},
}
USED_UP = {
    "requests": KeyTerms(requests_per_minute=1),
    "tokens": KeyTerms(tokens_per_minute=12),
    "at once": KeyTerms(parallel_requests=1),
    "budget": KeyTerms(budget_tokens=12),
}


@pytest.mark.parametrize("told", USED_UP)
async def test_nothing_is_computed_for_a_key_that_has_nothing_left(
    served_model, tmp_path, monkeypatch, told
):
    async with edge(served_model, tmp_path, prices=("*=1/1",)) as (client, accounts, _):
        made = await accounts.create(USED_UP[told])
        headers, now_s = bearer(made.secret), accounts.clock.now_s()
        held = accounts.meter(made.record).reserve(12, 12, now_s, accounts.wall_s())
        if told == "budget":
            accounts.meter(made.record).settle(held, 12, 12, 12, now_s, accounts.wall_s())

        async def computed(*_, **__):
            raise AssertionError("something was computed")

        for name in ("chat", "turns", "text"):
            monkeypatch.setattr(f"coordinator.edge.text.prompts.PromptReader.{name}", computed)
        monkeypatch.setattr("coordinator.edge.answers.grammar_check.GrammarCheck.check", computed)
        for path, body in GENERATING.items():
            reply = await client.post(path, json=body, headers=headers)
            assert reply.status_code == 429, (path, reply.text)
            assert told in reply.text
            if told == "budget":
                assert reply.headers["x-should-retry"] == "false"
        loaded = await client.post("/api/generate", json={"prompt": ""}, headers=headers)
        assert loaded.json()["done_reason"] == "load"


async def test_a_spent_budget_of_money_still_serves_what_is_free(served_model, tmp_path):
    prices = ("tiny=1000/1000", "tiny-alias=0/0")
    async with edge(served_model, tmp_path, prices=prices) as (client, accounts, _):
        made = await accounts.create(KeyTerms(budget=0.001))
        accounts.meter(made.record).restore_spent(1_000_000, 1)
        for model, status in (("tiny", 429), ("tiny-alias", 200)):
            body = {"prompt": "Hello", "max_tokens": 5, "model": model}
            reply = await client.post("/v1/completions", json=body, headers=bearer(made.secret))
            assert reply.status_code == status

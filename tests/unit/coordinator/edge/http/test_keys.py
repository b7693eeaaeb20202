"""Keys of the database at every route of the application's own table, their limits at the edge, and what is booked."""

from __future__ import annotations

import asyncio
import csv
import io
import sqlite3
from contextlib import asynccontextmanager

import httpx
import orjson
import pytest

from coordinator.accounts.accounts import Accounts, AccountSettings
from coordinator.accounts.booking import Request
from coordinator.accounts.database import open_database
from coordinator.accounts.terms import KeyTerms, make_key, revoked
from coordinator.cluster.scripted_service import ScriptedPools, ScriptedService, say
from coordinator.cluster.service_api import StreamEvent
from coordinator.edge.answers.answer import Usage
from coordinator.edge.app import create_app
from coordinator.edge.http.route_list import OPENED_BY, RouteList
from protocol.clock import SystemClock
from protocol.errors import ConfigError, Overloaded, WorkerLost
from protocol.finish import FinishReason
from tests.patience import PATIENCE_S
from tests.unit.coordinator.edge.http.all_options import everything

COMPLETE = "/v1/completions"
HELLO = {"prompt": "Hello", "max_tokens": 5}
OPEN = {"/health", "/live", "/ui"}
ADMIN = ("/cluster", "/keys", "/rollouts", "/v1/load_lora_adapter", "/v1/unload_lora_adapter")
ADMIN_ALONE = ("/models", "/models/load", "/models/unload", "/sleep", "/wake_up", "/is_sleeping")
PLACES = {"worker_id": "prefill-0", "model_id": "tiny", "response_id": "resp_x", "key_id": "none"}


@asynccontextmanager
async def edge(served_model, path, service=None, prices=(), must_write=False, **keys):
    accounts = Accounts.open(AccountSettings(path / "keys.db", prices, must_write), SystemClock())
    accounts.start(asyncio.get_running_loop())
    app = create_app(
        service=service or ScriptedService(default=say([5, 6, 2], FinishReason.STOP)),
        model=served_model,
        accounts=accounts,
        pools=ScriptedPools(),
        **keys,
    )
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        yield client, accounts, app
    await accounts.close()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def needed(path: str) -> str | None:
    """The scope of a route; None where any good key does."""
    if path == "/metrics":
        return "metrics"
    if path == "/usage":
        return None
    is_admin = path.startswith(ADMIN) or path in ADMIN_ALONE
    return "admin" if is_admin else "inference"


def code_of(reply: httpx.Response, path: str, header: str) -> object:
    """The error's words, read in the shape of its dialect."""
    told = reply.json()
    if path.startswith("/api/"):
        assert list(told) == ["error"]
        return told["error"]
    if path.startswith("/v1/messages") or header:
        assert told["type"] == "error"
        return told["error"]["message"]
    return told["error"]["message"]


async def test_every_route_of_the_table_takes_only_the_keys_that_it_needs(served_model, tmp_path):
    """Every option is on, so that each route there is is in the table."""
    options = {"api_keys": ["static"], "admin_keys": ["boss"]} | everything(tmp_path)
    async with edge(served_model, tmp_path, **options) as (client, accounts, app):
        made = {
            scope: (await accounts.create(KeyTerms(scopes=(scope,)))).secret
            for scope in ("inference", "metrics", "admin")
        }
        expired = await accounts.create(KeyTerms(scopes=("inference", "admin"), expires_at=1.0))
        gone = await accounts.create(KeyTerms(scopes=("inference", "admin", "metrics")))
        await accounts.revoke(gone.record.key_id)
        routes = [
            (method, route.path)
            for route in RouteList(app.routes)
            for method in (route.methods or set()) - {"HEAD", "OPTIONS"}
        ]
        assert {*OPENED_BY, *ADMIN_ALONE, "/rollouts/start"} <= {path for _, path in routes}
        shown = {
            "none": {},
            "empty": bearer(""),
            "bad": bearer(made["inference"][:-1]),
            "other id": bearer(made["inference"].replace("sk-baton-", "sk-baton-0")),
            "expired": bearer(expired.secret),
            "revoked": {"x-api-key": gone.secret},
            **{scope: bearer(secret) for scope, secret in made.items()},
            "static": bearer("static"),
            "boss": {"x-api-key": "boss"},
        }
        opens = {
            "inference": {"inference", None},
            "metrics": {"metrics", None},
            "admin": {"admin", "metrics", None},
            "static": {"inference", None},
            "boss": {"admin", "metrics", None},
        }
        for method, template in routes:
            path, scope = template.replace(":path", ""), needed(template)
            for name, value in PLACES.items():
                path = path.replace(f"{{{name}}}", value)
            for who, headers in shown.items():
                for header in (
                    ("", "anthropic-version") if template.startswith("/v1/models") else ("",)
                ):
                    told = headers | ({header: "2023-06-01"} if header else {})
                    reply = await client.request(method, path, headers=told, json={})
                    what = (method, path, who)
                    if template in OPEN or scope in opens.get(who, ()):
                        assert reply.status_code not in (401, 403), what
                        continue
                    knows = who in opens and (who != "boss")
                    assert reply.status_code == (403 if knows else 401), what
                    words = code_of(reply, path, header)
                    for state in ("expired", "revoked"):
                        assert (state in str(words)) == (who == state), what


@pytest.mark.parametrize("spelling", ["Bearer {}", "bearer {}", "BEARER   {}", "Bearer {}  "])
@pytest.mark.parametrize("name", ["Authorization", "authorization", "AUTHORIZATION"])
async def test_spellings_of_a_header_do_not_matter(served_model, tmp_path, spelling, name):
    async with edge(served_model, tmp_path) as (client, accounts, _):
        secret = (await accounts.create(KeyTerms())).secret
        reply = await client.get("/v1/models", headers={name: spelling.format(secret)})
        assert reply.status_code == 200
        reply = await client.get("/v1/models", headers={"X-API-KEY": secret})
        assert reply.status_code == 200


async def test_a_key_is_shown_in_one_place_and_once(served_model, tmp_path):
    async with edge(served_model, tmp_path) as (client, accounts, _):
        secret = (await accounts.create(KeyTerms())).secret
        good, bad = f"Bearer {secret}", "Bearer sk-other"
        closed = [
            [("authorization", good), ("authorization", bad)],
            [("authorization", bad), ("authorization", good)],
            [("authorization", good), ("Authorization", good)],
            [("x-api-key", secret), ("x-api-key", "other")],
            [("authorization", bad), ("x-api-key", secret)],
            [("authorization", "Bearer"), ("x-api-key", secret + "x")],
            [("authorization", secret)],
            [("authorization", f"Bearer\t{secret}")],
            [("authorization", f"Bearer,{secret}")],
            [("authorization", f"Bearer {secret},{secret}")],
            [("authorization", f"Token {secret}")],
            [("x-api-key", good)],
            [("api-key", secret)],
            [("cookie", f"authorization={secret}")],
            [("proxy-authorization", good)],
        ]
        for headers in closed:
            reply = await client.get("/v1/models", headers=headers)
            assert reply.status_code == 401, headers
            assert secret not in reply.text
        for query in (f"api_key={secret}", f"key={secret}", f"authorization={good}"):
            assert (await client.get(f"/v1/models?{query}")).status_code == 401
        basic = [("authorization", "Basic abc"), ("x-api-key", secret)]
        assert (await client.get("/v1/models", headers=basic)).status_code == 200


async def test_without_an_admin_key_no_clients_key_of_the_command_line_is_one(
    served_model, tmp_path
):
    async with edge(served_model, tmp_path, api_keys=["static"]) as (client, accounts, _):
        for path in ("/keys", "/cluster", "/metrics"):
            assert (await client.get(path, headers=bearer("static"))).status_code == 403
        other = (await accounts.create(KeyTerms())).secret
        await client.post(COMPLETE, json=HELLO, headers=bearer(other))
        reply = await client.get("/usage", headers=bearer("static"))
        assert reply.json()["data"] == []


async def test_secrets_are_nowhere_but_in_the_answer_that_tells_them(
    served_model, tmp_path, caplog
):
    async with edge(served_model, tmp_path, admin_keys=["boss"]) as (client, _, _):
        caplog.set_level("DEBUG")
        reply = await client.post("/keys", json={"tenant": "acme"}, headers=bearer("boss"))
        secret = reply.json()["key"]
        assert reply.headers["cache-control"] == "no-store"
        key_id, tail = reply.json()["id"], secret.partition(".")[2]
        other = await client.post(f"/keys/{key_id}/rotate", json={}, headers=bearer("boss"))
        for told in (
            (await client.get("/keys", headers=bearer("boss"))).text,
            (await client.get(f"/keys/{key_id}", headers=bearer("boss"))).text,
            (await client.get("/metrics", headers=bearer("boss"))).text,
            (await client.post(COMPLETE, json=HELLO, headers=bearer(secret))).text,
            other.text,
            caplog.text,
        ):
            assert tail not in told
    for file in tmp_path.iterdir():
        assert tail.encode() not in file.read_bytes()


async def test_a_rotated_key_keeps_its_former_secret_as_long_as_was_said(served_model, tmp_path):
    async with edge(served_model, tmp_path) as (client, accounts, _):
        made = await accounts.create(KeyTerms())
        second = await accounts.rotate(made.record.key_id, 60.0)
        for secret in (made.secret, second.secret):
            assert (await client.get("/v1/models", headers=bearer(secret))).status_code == 200
        third = await accounts.rotate(made.record.key_id, 0.0)
        for secret, status in ((made.secret, 401), (second.secret, 401), (third.secret, 200)):
            assert (await client.get("/v1/models", headers=bearer(secret))).status_code == status


async def test_what_another_process_writes_is_seen(served_model, tmp_path):
    async with edge(served_model, tmp_path) as (client, accounts, _):
        database = open_database(tmp_path / "keys.db")
        made = make_key(KeyTerms(), accounts.wall_s())
        for record, status in ((made.record, 200), (revoked(made.record, 1.0), 401)):
            database.put_key(record)
            async with asyncio.timeout(PATIENCE_S):
                reply = await client.get("/v1/models", headers=bearer(made.secret))
                while reply.status_code != status:
                    await accounts.ask(lambda _: None)
                    reply = await client.get("/v1/models", headers=bearer(made.secret))
        database.close()


async def test_tenants_caches_are_apart_unless_they_are_shared(served_model, tmp_path):
    service = ScriptedService(default=say([2], FinishReason.STOP))
    async with edge(served_model, tmp_path, service, api_keys=["static"]) as parts:
        client, accounts, _ = parts
        terms = [
            KeyTerms(tenant="a"),
            KeyTerms(tenant="a", name="another key"),
            KeyTerms(tenant="b"),
            KeyTerms(tenant="c", shared_cache="all"),
            KeyTerms(tenant="d", shared_cache="all"),
            KeyTerms(tenant="all"),
            KeyTerms(),
            KeyTerms(),
        ]
        for one in terms:
            secret = (await accounts.create(one)).secret
            await client.post(COMPLETE, json=HELLO, headers=bearer(secret))
        own = {"cache_salt": "a"}
        await client.post(COMPLETE, json=HELLO | own, headers=bearer("static"))
    a, again, b, c, d, e, alone, another, static = (one.cache_salt for one in service.generations)
    assert (a, c) == (again, d)
    assert len({a, b, c, e, alone, another, static}) == 7
    assert all(len(salt) >= 32 for salt in (a, b, c, e, alone, another))


async def test_a_key_without_a_tenant_is_one_of_its_own_before_and_after_a_rotation(
    served_model, tmp_path
):
    async with edge(served_model, tmp_path, admin_keys=["boss"]) as (client, accounts, _):
        made = [
            (await client.post("/keys", json={}, headers=bearer("boss"))).json() for _ in range(2)
        ]
        assert [key["tenant"] for key in made] == [key["id"] for key in made]
        headers, others = (bearer(key["key"]) for key in made)
        told = (await client.post("/v1/responses", json={"input": "x"}, headers=headers)).json()
        path = f"/v1/responses/{told['id']}"
        assert (await client.get(path, headers=others)).status_code == 404
        secret = (await accounts.rotate(made[0]["id"], 0.0)).secret
        assert (await client.get(path, headers=bearer(secret))).status_code == 200


async def test_only_allowed_models_are_answered(served_model, tmp_path):
    async with edge(served_model, tmp_path) as (client, accounts, _):
        headers = bearer((await accounts.create(KeyTerms(models=("tiny-alias",)))).secret)
        for model, status in (("tiny", 403), ("tiny-alias", 200), (None, 403)):
            body = HELLO | ({"model": model} if model else {})
            reply = await client.post(COMPLETE, json=body, headers=headers)
            assert reply.status_code == status


async def test_sixty_four_clients_never_get_more_than_the_limit(served_model, tmp_path):
    async with edge(served_model, tmp_path) as (client, accounts, _):
        made = await accounts.create(KeyTerms(requests_per_minute=10))
        headers = bearer(made.secret)
        replies = await asyncio.gather(
            *(client.post(COMPLETE, json=HELLO, headers=headers) for _ in range(64))
        )
        good = [reply for reply in replies if reply.status_code == 200]
        refused = [reply for reply in replies if reply.status_code == 429]
        assert (len(good), len(refused)) == (10, 54)
        left = sorted(int(reply.headers["x-ratelimit-remaining-requests"]) for reply in good)
        assert left == list(range(10))
        told = sorted(int(reply.headers["retry-after"]) for reply in refused)
        assert all(58 <= seconds <= 60 for seconds in told[:10])  # the next minute has as many
        assert all(118 <= seconds <= 120 for seconds in told[10:])
        for reply in refused:
            assert int(reply.headers["retry-after-ms"]) <= 120_000
            assert reply.headers["x-ratelimit-limit-requests"] == "10"


async def test_tokens_are_held_for_what_may_come_and_settled_to_what_came(served_model, tmp_path):
    async with edge(served_model, tmp_path) as (client, accounts, _):
        headers = bearer((await accounts.create(KeyTerms(tokens_per_minute=100))).secret)
        reply = await client.post(COMPLETE, json=HELLO | {"max_tokens": 90}, headers=headers)
        used = reply.json()["usage"]["total_tokens"]
        reply = await client.post(COMPLETE, json=HELLO | {"max_tokens": 200}, headers=headers)
        assert reply.status_code == 429
        assert reply.headers["x-should-retry"] == "false"
        assert reply.headers["x-ratelimit-remaining-tokens"] == str(100 - used)


async def test_a_request_that_the_cluster_refuses_costs_nothing(served_model, tmp_path):
    service = ScriptedService(default=say([2], FinishReason.STOP), refusal=Overloaded("full"))
    async with edge(served_model, tmp_path, service) as (client, accounts, _):
        made = await accounts.create(KeyTerms(requests_per_minute=1, parallel_requests=1))
        for _ in range(3):
            reply = await client.post(COMPLETE, json=HELLO, headers=bearer(made.secret))
            assert "full" in reply.text
        service.refusal = None
        reply = await client.post(COMPLETE, json=HELLO, headers=bearer(made.secret))
        assert reply.status_code == 200
        reply = await client.get("/usage?group_by=request", headers=bearer(made.secret))
        assert len(reply.json()["data"]) == 1


async def test_the_ledger_is_what_answers_told(served_model, tmp_path):
    async with edge(served_model, tmp_path, prices=("tiny=1/2",), admin_keys=["boss"]) as parts:
        client, accounts, _ = parts
        secrets = [(await accounts.create(KeyTerms(tenant=name))).secret for name in "ab"]
        told: dict[str, dict] = {}
        for secret in secrets:
            for stream in (False, True):
                options = {"stream": True, "stream_options": {"include_usage": True}}
                body = HELLO | (options if stream else {})
                reply = await client.post(COMPLETE, json=body, headers=bearer(secret))
                text = reply.text
                if stream:
                    text = text.split("data: ")[-2]
                answer = httpx.Response(200, text=text).json()
                told[answer["id"]] = answer["usage"]
        page = await client.get("/usage?group_by=request", headers=bearer("boss"))
        rows = {row["request_id"]: row for row in page.json()["data"]}
        assert rows.keys() == told.keys()
        for name, usage in told.items():
            row = rows[name]
            assert row["input_tokens"] == usage["prompt_tokens"]
            assert row["output_tokens"] == usage["completion_tokens"]
            assert row["end"] == "stop"
            nano = usage["prompt_tokens"] * 1000 + usage["completion_tokens"] * 2000
            assert row["cost"] == f"0.{nano:09d}"
        own = (await client.get("/usage?group_by=tenant", headers=bearer(secrets[0]))).json()
        assert [row["tenant"] for row in own["data"]] == ["a"]
        assert own["data"][0]["requests"] == 2
        reply = await client.get("/usage?format=csv", headers=bearer("boss"))
        assert len(list(csv.DictReader(io.StringIO(reply.text)))) == 2
        assert (await client.get("/usage?key=x", headers=bearer(secrets[0]))).status_code == 400
        assert (await client.get("/usage?group_by=x", headers=bearer("boss"))).status_code == 400


@pytest.mark.parametrize("must_write", [False, True])
async def test_a_full_disk_is_told_and_serves_or_refuses_as_it_was_said(
    served_model, tmp_path, must_write
):
    async with edge(served_model, tmp_path, must_write=must_write) as (client, accounts, _):
        headers = bearer((await accounts.create(KeyTerms())).secret)
        await accounts.ask(lambda db: db.connection.execute("PRAGMA max_page_count = 1"))
        await accounts.ask(lambda db: db.connection.execute("PRAGMA cache_spill = 1"))

        async def reason() -> str:
            for _ in range(40):
                await client.post(COMPLETE, json=HELLO, headers=headers)
            await accounts.ask(lambda _: None)
            return accounts.state().reason

        for _ in range(20):
            if await reason():
                break
        assert "full" in accounts.state().reason
        reply = await client.post(COMPLETE, json=HELLO, headers=headers)
        assert reply.status_code == (503 if must_write else 200)
        assert reply.headers.get("retry-after") == ("1" if must_write else None)
        waiting = accounts.state().waiting
        assert waiting > 0
        await accounts.ask(lambda db: db.connection.execute("PRAGMA max_page_count = 1000000"))
        async with asyncio.timeout(PATIENCE_S):
            while accounts.state().reason:
                await accounts.ask(lambda _: None)
        reply = await client.post(COMPLETE, json=HELLO, headers=headers)
        assert reply.status_code == 200


# ---- ends that are not good ones


async def drive(app, key, on_body, **fields):
    """Speak ASGI by hand: the client leaves when `on_body` says so; what was sent until then."""
    gone = asyncio.Event()
    told: list[bytes] = []
    body = orjson.dumps(HELLO | fields)
    messages = [{"type": "http.request", "body": body}]

    async def receive():
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if message["type"] == "http.response.body":
            told.append(message["body"])
            if on_body(told):
                gone.set()
                await asyncio.Event().wait()

    scope = {
        "type": "http",
        "method": "POST",
        "path": COMPLETE,
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {key}".encode())],
        "scheme": "http",
        "server": ("edge", 80),
        "root_path": "",
    }
    if on_body([]):
        gone.set()
    await asyncio.wait_for(app(scope, receive, send), PATIENCE_S)
    return b"".join(told)


async def booked(client, key):
    reply = await client.get("/usage?group_by=request", headers=bearer(key))
    return [
        (row["end"], row["error"], row["input_tokens"] > 0, row["output_tokens"])
        for row in reply.json()["data"]
    ]


async def test_a_cancelled_stream_is_booked_as_far_as_it_was_sent(served_model, tmp_path):
    service = ScriptedService(default=say([5, 6, 7, 8, 2], FinishReason.STOP))
    async with edge(served_model, tmp_path, service) as (client, accounts, app):
        key = (await accounts.create(KeyTerms(parallel_requests=1))).secret
        await drive(app, key, lambda told: len(told) == 3, stream=True)
        assert await booked(client, key) == [("abort", "client_disconnected", True, 2)]
        assert accounts.meter(next(iter(accounts.book))).running == 0


async def test_a_whole_answer_that_nobody_waited_for_costs_nothing_but_counts(
    served_model, tmp_path
):
    service = ScriptedService(default=say([5, 6], None))
    async with edge(served_model, tmp_path, service) as (client, accounts, app):
        made = await accounts.create(KeyTerms(tokens_per_minute=100, requests_per_minute=9))
        await drive(app, made.secret, lambda told: True)
        assert await booked(client, made.secret) == [("abort", "client_disconnected", False, 0)]
        meter = accounts.meter(made.record)
        assert meter.requests is not None
        assert meter.requests.used(accounts.clock.now_s()) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failed_answer_is_booked_as_far_as_it_was_sent(served_model, tmp_path, stream):
    script = [*say([5, 6], None), StreamEvent(error=WorkerLost("gone"))]
    service = ScriptedService(default=script)
    async with edge(served_model, tmp_path, service) as (client, accounts, _):
        key = (await accounts.create(KeyTerms())).secret
        reply = await client.post(COMPLETE, json=HELLO | {"stream": stream}, headers=bearer(key))
        assert "gone" in reply.text
        ((end, error, has_input, num_output),) = await booked(client, key)
        assert (end, error) == ("error", "ServiceUnavailableError")
        chunks = reply.text.count('"text":"') if stream else 0
        assert (has_input, num_output) == (chunks > 0, chunks)


async def test_a_client_that_leaves_before_the_last_bytes_got_what_was_sent_before(
    served_model, tmp_path
):
    service = ScriptedService(default=say([5, 6, 7], FinishReason.LENGTH))
    async with edge(served_model, tmp_path, service) as (client, accounts, app):
        key = (await accounts.create(KeyTerms())).secret
        await drive(app, key, lambda told: b"[DONE]" in b"".join(told), stream=True)
        assert await booked(client, key) == [("abort", "client_disconnected", True, 2)]


async def test_a_stream_that_was_kept_to_its_end_is_booked_as_told(served_model, tmp_path):
    service = ScriptedService(default=say([5, 6, 7], FinishReason.LENGTH))
    async with edge(served_model, tmp_path, service) as (client, accounts, _):
        key = (await accounts.create(KeyTerms())).secret
        headers = bearer(key) | {"x-baton-resumable": "1"}
        reply = await client.post(COMPLETE, json=HELLO | {"stream": True}, headers=headers)
        assert reply.text.endswith("data: [DONE]\n\n")
        assert await booked(client, key) == [("length", None, True, 3)]


# ---- starts


def crash(accounts):
    """The process is gone: nothing is written any more."""
    accounts.journal.close()


async def test_a_start_books_what_was_handed_over_and_nothing_twice(served_model, tmp_path):
    settings = AccountSettings(tmp_path / "keys.db")
    first = Accounts.open(settings, SystemClock())
    usage = Usage(7, 3, 2)

    def begun(name: str):
        booking = first.booking("k", "t", None)
        booking.reserve(Request("tiny", "chat", name, "", 0.0), 7, 9)
        return booking

    begun("held")
    begun("closed").finish(usage, "stop", 1)
    for name in ("left", "written"):
        booking = begun(name)
        booking.finish(usage, "stop", 3)
        booking.leaving()
        if name == "written":
            opened = open_database(tmp_path / "keys.db")
            opened.add([booking._record])
            opened.close()
    stuck = begun("stuck")
    stuck.finish(usage, "stop", 1)
    stuck.leaving()
    stuck.stuck()
    crash(first)
    for _ in range(2):
        again = Accounts.open(settings, SystemClock())
        found = await_rows(tmp_path / "keys.db")
        crash(again)
        again.writer._database.close()
        delivered = {row[0] for row in found if row[1] == "stop"}
        assert (delivered, len(found)) == ({"left", "written"}, 5)
        assert sum(row[2] for row in found) == 6
        assert sum(row[1] == "crashed" for row in found) == 3


def await_rows(path):
    with sqlite3.connect(path) as connection:
        return connection.execute("SELECT request_id, end, output_tokens FROM usage").fetchall()


async def test_a_file_that_cannot_be_written_serves_its_keys_or_refuses_to_start(
    served_model, tmp_path, monkeypatch
):
    database = open_database(tmp_path / "keys.db")
    made = make_key(KeyTerms(), 1.0)
    database.put_key(made.record)
    database.close()

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("coordinator.accounts.accounts.Journal.open", refuse)
    with pytest.raises(ConfigError, match="Read-only file system"):
        Accounts.open(AccountSettings(tmp_path / "keys.db", (), must_write=True), SystemClock())
    async with edge(served_model, tmp_path) as (client, accounts, _):
        reply = await client.post(COMPLETE, json=HELLO, headers=bearer(made.secret))
        assert reply.status_code == 200
        assert "cannot be written" in accounts.state().reason
        ledger = (await client.get("/usage", headers=bearer(made.secret))).json()["ledger"]
        assert not ledger["ok"]


async def test_keys_are_listed_by_pages_from_either_end(served_model, tmp_path):
    async with edge(served_model, tmp_path, admin_keys=["boss"]) as (client, accounts, _):
        made = [(await accounts.create(KeyTerms())).record.key_id for _ in range(5)]

        async def ids(asked: str) -> list[str]:
            reply = (await client.get(f"/keys{asked}", headers=bearer("boss"))).json()
            assert reply["total"] == 5
            return [key["id"] for key in reply["data"]]

        assert await ids("") == made
        assert await ids("?order=desc&limit=2") == made[:-3:-1]
        assert await ids("?after=3") == made[3:]
        assert await ids("?after=9") == []
        for name in ("order=up", "limit=-1", "limit=1e3", "after=x", "page=2"):
            reply = await client.get(f"/keys?{name}", headers=bearer("boss"))
            assert reply.status_code == 400
            assert reply.json()["error"]["param"] == name.partition("=")[0]


async def test_the_cluster_says_that_there_are_keys(served_model, tmp_path):
    async with edge(served_model, tmp_path, admin_keys=["boss"]) as (client, _, _):
        reply = await client.get("/cluster", headers=bearer("boss"))
        assert reply.json()["front_door"] == ["keys"]

"""`baton load`, `unload` and `ps`: what they ask, and what people read; the server is a handler of requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from deploy.commands.chat import ServerError
from deploy.commands.residents import load, main, ps, unload
from protocol.errors import ConfigError

CARD = {
    "id": "red",
    "status": {"value": "loaded"},
    "users": 2,
    "waiting": 0,
    "needed_bytes": 3 << 30,
    "expires_in_s": 61.7,
    "failure": "",
}
FAILURE = {"error": {"message": "the model 'green' is not served here; served: red", "code": None}}


class Asked:
    """A server that gives one answer, and keeps what it was asked."""

    def __init__(self, answer: Any, status: int = 200) -> None:
        self.answer, self.status = answer, status
        self.seen: list[tuple[str, str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        self.seen.append((request.method, request.url.path, body))
        return httpx.Response(self.status, json=self.answer)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url="http://server", transport=httpx.MockTransport(self))


def test_load_asks_with_the_time_that_was_given_and_says_when_it_is_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = Asked(CARD)
    assert load(asked.client(), "red", "1h") == load(asked.client(), "red", None) == 0
    assert asked.seen == [
        ("POST", "/models/load", {"model": "red", "keep_alive": "1h"}),
        ("POST", "/models/load", {"model": "red"}),
    ]
    assert capsys.readouterr().out == "red is loaded\n" * 2


@pytest.mark.parametrize(
    ("users", "told"),
    [(0, "red goes\n"), (2, "red goes when the 2 requests that use it have ended\n")],
)
def test_unload_says_whom_it_waits_for(
    users: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = Asked(CARD | {"users": users})
    assert unload(asked.client(), "red") == 0
    assert asked.seen == [("POST", "/models/unload", {"model": "red"})]
    assert capsys.readouterr().out == told


@pytest.mark.parametrize("state", ["unloaded", "failed"])
def test_unload_says_where_there_is_nothing_to_do(
    state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unload(Asked(CARD | {"users": 0, "status": {"value": state}}).client(), "red") == 0
    assert capsys.readouterr().out == "red is not in memory: there is nothing to do\n"


def test_ps_has_a_row_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    never = CARD | {"id": "blue", "expires_in_s": None}
    failed = CARD | {"id": "torn", "status": {"value": "failed"}, "failure": "the file is torn"}
    assert ps(Asked({"data": [CARD, never, failed]}).client()) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split() == [
        "model",
        "state",
        "size",
        "used",
        "by",
        "waited",
        "for",
        "by",
        "goes",
        "in",
    ]
    assert [row.split()[0] for row in rows] == ["red", "blue", "torn"]
    assert rows[0].rstrip().endswith("62 s")
    assert rows[1].rstrip().endswith("never")
    assert "failed (the file is torn)" in rows[2]


def test_what_the_server_refuses_is_told_in_its_words() -> None:
    with pytest.raises(ServerError, match="'green' is not served here"):
        load(Asked(FAILURE, 404).client(), "green", None)
    with pytest.raises(ServerError, match="all models of this server stay"):
        ps(Asked(FAILURE, 404).client())


@pytest.mark.parametrize("argv", [["load"], ["unload"], ["ps", "red"], ["load", "a", "b"]])
def test_odd_arguments_are_refused(argv: list[str]) -> None:
    with pytest.raises(ConfigError, match=rf"baton {argv[0]}|required: MODEL"):
        main(argv)


@pytest.mark.parametrize("verb", [["ps"], ["load", "red"], ["unload", "red"]])
def test_without_a_server_it_says_what_to_do(verb: list[str]) -> None:
    with pytest.raises(ServerError, match=r"no server at http://127.0.0.1:9 .*baton serve.*--url"):
        main([*verb, "--url", "http://127.0.0.1:9"])


@pytest.mark.parametrize("answer", ["<html>hello</html>", "[]", "", "1", "{"])
def test_another_server_is_told_by_its_url(answer: str) -> None:
    def other(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=answer)

    client = httpx.Client(base_url="http://server", transport=httpx.MockTransport(other))
    for path, ask in (("/models", ps), ("/models/unload", lambda it: unload(it, "red"))):
        with pytest.raises(ServerError, match=f"http://server{path} is answered, but not by"):
            ask(client)


def test_an_answer_that_cannot_be_unpacked_is_no_servers() -> None:
    def torn(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Torn())

    client = httpx.Client(base_url="http://server", transport=httpx.MockTransport(torn))
    with pytest.raises(ServerError, match="DecodingError"):
        ps(client)


class Torn(httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        yield b"this was never packed"

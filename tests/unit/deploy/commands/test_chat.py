"""The terminal conversation against a scripted server."""

from __future__ import annotations

import io
import json

import httpx
import pytest

from deploy.commands.banner import curl_line
from deploy.commands.chat import Chat, ServerError
from deploy.commands.status import worker_table
from protocol.errors import ConfigError


def event(text: str) -> str:
    return "data: " + json.dumps({"choices": [{"delta": {"content": text}}]}) + "\n\n"


def server(seen: list[dict], status: int = 200, body: str | None = None) -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "tiny"}]})
        seen.append({"headers": request.headers, **json.loads(request.content)})
        text = event("Hel") + event("lo") + "data: [DONE]\n\n" if body is None else body
        return httpx.Response(status, text=text)

    return httpx.MockTransport(answer)


def chat(transport: httpx.MockTransport, **options) -> Chat:
    return Chat("http://x:1/v1", "key", transport=transport, **options)


def feed(monkeypatch, *lines: str) -> None:
    waiting = iter(lines)

    def read(prompt: str = "") -> str:
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)


def test_one_question_prints_the_answer(capsys) -> None:
    seen: list[dict] = []
    talk = chat(server(seen), system="be brief", options={"temperature": 0.0, "max_tokens": None})
    assert talk.ask_once("hi") == 0
    assert capsys.readouterr().out == "Hello\n"
    assert seen[0]["model"] == "tiny"
    assert seen[0]["temperature"] == 0.0
    assert "max_tokens" not in seen[0]
    assert seen[0]["headers"]["authorization"] == "Bearer key"
    assert [message["role"] for message in seen[0]["messages"]] == ["system", "user"]


def test_turns_accumulate_and_clear_forgets(monkeypatch, capsys) -> None:
    seen: list[dict] = []
    feed(monkeypatch, "one", "two", "/clear", "three", "/quit", "never")
    assert chat(server(seen)).converse() == 0
    assert [len(request["messages"]) for request in seen] == [1, 3, 1]
    assert capsys.readouterr().out == "Hello\nHello\nHello\n"


def test_unknown_command_helps(monkeypatch, capsys) -> None:
    feed(monkeypatch, "/what")
    assert chat(server([])).converse() == 0
    assert "/clear" in capsys.readouterr().out


def test_an_error_is_told_in_the_servers_words() -> None:
    body = json.dumps({"error": {"message": "prompt too long"}})
    talk = chat(server([], 400, body))
    with pytest.raises(ServerError, match="400: prompt too long"):
        talk.ask_once("hi")
    assert talk.messages == []


def test_an_error_event_ends_the_answer() -> None:
    body = event("He") + 'data: {"error": {"message": "worker lost"}}\n\n'
    with pytest.raises(ServerError, match="worker lost"):
        chat(server([], 200, body)).ask_once("hi")


def test_no_server_says_how_to_start_one() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(ServerError, match="baton serve"):
        chat(httpx.MockTransport(refuse)).ask_once("hi")


def test_url_without_a_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="--url"):
        Chat("localhost", None)


def test_curl_line_is_quoted_for_a_shell() -> None:
    import shlex

    words = shlex.split(curl_line("http://127.0.0.1:8000", "it's", with_key=True))
    assert json.loads(words[-1])["model"] == "it's"
    assert "Authorization: Bearer $BATON_API_KEY" in words


def test_status_table_has_a_row_a_worker() -> None:
    worker = {
        "id": "prefill-0",
        "role": "prefill",
        "state": "ready",
        "pid": 1,
        "blocks": {"held": 3},
    }
    assert worker_table({"workers": [worker, {}]}).row_count == 2


@pytest.mark.parametrize("answer", ['{"data": []}', "<html>", "[]", '{"data": [{}]}', "null"])
def test_a_server_that_names_no_model_is_told(answer):
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=answer))
    with pytest.raises(ServerError, match="names no model that it serves; name one with --model"):
        chat(transport).ask_once("hello")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("data: {torn\n\n", "no piece of a chat: {torn"),
        ("data: 1\n\n", "no piece of a chat: 1"),
        ('data: {"choices": [1]}\n\n', "no piece of a chat"),
        ('data: {"error": "it broke"}\n\n', "it broke"),
    ],
)
def test_what_is_no_piece_of_a_chat_is_told(body, said):
    with pytest.raises(ServerError, match=said):
        chat(server([], body=body)).ask_once("hello")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("output", "shown"),
    [(Terminal(), "\\x1b]0;owned\\x07\ta\nb\n"), (io.StringIO(), "\x1b]0;owned\x07\ta\nb\n")],
)
def test_what_a_model_says_drives_no_terminal(output, shown, monkeypatch):
    monkeypatch.setattr("sys.stdout", output)
    body = event("\x1b]0;owned\x07") + event("\ta\nb") + "data: [DONE]\n\n"
    chat(server([], body=body)).ask_once("hello")
    assert output.getvalue() == shown

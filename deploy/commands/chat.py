"""`baton chat`: a conversation in a terminal. Owns the prompt and the history; the server does the rest.

Speaks plain HTTP to any OpenAI-compatible server.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import httpx

from deploy.processes.log_lines import ESCAPES
from protocol.errors import BatonError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

_ESCAPES = {code: told for code, told in ESCAPES.items() if code not in (ord("\n"), ord("\t"))}
HELP = "/clear forgets the conversation, /quit or Ctrl-D leaves, Ctrl-C stops an answer"


class ServerError(BatonError):
    """The server cannot be reached, or answered with an error."""


class Chat:
    """A conversation with one server; `messages` is what the server is sent each turn."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        model: str | None = None,
        system: str | None = None,
        options: dict[str, Any] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        base = url.rstrip("/").removesuffix("/v1")
        if "://" not in base:
            raise ConfigError(f"--url: {url!r} is no URL; write http://127.0.0.1:8000")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx.Timeout(None, connect=5.0)
        self._client = httpx.Client(
            base_url=base, headers=headers, timeout=timeout, transport=transport, trust_env=False
        )
        self._url, self._model = base, model
        self._options = {key: value for key, value in (options or {}).items() if value is not None}
        self._system = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, str]] = list(self._system)

    def ask_once(self, question: str) -> int:
        """One question, one answer on standard output."""
        self._answer(question)
        return 0

    def converse(self) -> int:
        """Read questions until the end of input."""
        interactive = sys.stdin.isatty()
        if interactive:
            import readline  # noqa: F401 - line editing and history in input()

            print(f"{self.model} at {self._url}: {HELP}")
        while True:
            try:
                line = input("> " if interactive else "").strip()
            except (EOFError, KeyboardInterrupt):
                if interactive:
                    print()
                return 0
            if line in ("/quit", "/exit"):
                return 0
            self._take(line)

    def _take(self, line: str) -> None:
        if line == "/clear":
            self.messages = list(self._system)
        elif line.startswith("/"):
            print(HELP)
        elif line:
            try:
                self._answer(line)
            except ServerError as error:
                if not sys.stdin.isatty():
                    raise
                print(f"[{error}]", file=sys.stderr)

    def _answer(self, question: str) -> None:
        """Stream an answer; an interrupted one is kept as far as it came."""
        self.messages.append({"role": "user", "content": question})
        pieces: list[str] = []
        try:
            for piece in self.stream():
                pieces.append(piece)
                print(_shown(piece), end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        except BatonError:
            self.messages.pop()
            raise
        print()
        self.messages.append({"role": "assistant", "content": "".join(pieces)})

    def stream(self) -> Iterator[str]:
        """Pieces of the answer to `messages`; ServerError when there is none."""
        body = {"model": self.model, "messages": self.messages, "stream": True, **self._options}
        try:
            with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise ServerError(explain(response))
                yield from read_pieces(response.iter_lines())
        except httpx.RequestError as error:
            raise self._unreachable(error) from error

    @property
    def model(self) -> str:
        """The model to ask: as chosen, or the first that is served."""
        if self._model is None:
            try:
                response = self._client.get("/v1/models")
            except httpx.RequestError as error:
                raise self._unreachable(error) from error
            if response.status_code != 200:
                raise ServerError(explain(response))
            try:
                self._model = str(response.json()["data"][0]["id"])
            except (ValueError, LookupError, TypeError):
                told = f"{self._url} names no model that it serves; name one with --model"
                raise ServerError(told) from None
        return self._model

    def _unreachable(self, error: httpx.RequestError) -> ServerError:
        if isinstance(error, httpx.ConnectError):
            return ServerError(f"no server at {self._url}; start one with: baton serve")
        return ServerError(f"the connection to {self._url} broke: {type(error).__name__}")


def _shown(text: str) -> str:
    """On a terminal nothing that a model says drives it; who pipes an answer gets it as it is."""
    return text.translate(_ESCAPES) if sys.stdout.isatty() else text


def read_pieces(lines: Iterator[str]) -> Iterator[str]:
    """Texts in a stream of server-sent events; ServerError for an error event."""
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        try:
            yield from _texts_of(json.loads(data))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ServerError(f"the server sent what is no piece of a chat: {data[:200]}") from None


def _texts_of(event: Any) -> list[str]:
    if "error" in event:
        error = event["error"]
        raise ServerError(str(error.get("message", error) if isinstance(error, dict) else error))
    texts = [(choice.get("delta") or {}).get("content") for choice in event.get("choices") or ()]
    return [str(text) for text in texts if text]


def explain(response: httpx.Response) -> str:
    """The message of an OpenAI-shaped error, or the start of whatever it is."""
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = response.text[:200]
    return f"the server answered {response.status_code}: {message}"

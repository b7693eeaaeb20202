"""An OpenAI endpoint that answers at known times: to check clients with. Owns its clockwork; there is no model.

usage: python -m benchmarks.peers.metronome [--port 0] [--ttft-ms 50] [--itl-ms 10] [--fail-every N] [--at-once]

The first token leaves `ttft` after the last byte of a request came, each further one `itl` later. A token's text is
the instant it left at, in nanoseconds of CLOCK_MONOTONIC, which every process of a host reads alike. Prints the port.
"""

from __future__ import annotations

import argparse
import itertools
import json
import socket
import sys
import threading
import time
from dataclasses import dataclass

MODEL = "metronome"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Beat:
    """Seconds; `fail_every` answers each so-manieth request with 500, `at_once` sends all tokens in one piece."""

    ttft_s: float
    itl_s: float
    fail_every: int
    at_once: bool


class Metronome:
    """A thread a connection: `time.sleep` is exact to some 0.1 ms, which no event loop is."""

    def __init__(self, beat: Beat, port: int) -> None:
        self._beat = beat
        self._numbers = itertools.count(1)
        self._listener = socket.create_server(("127.0.0.1", port), backlog=512)
        self.port = int(self._listener.getsockname()[1])

    def serve(self) -> None:
        """For ever."""
        while True:
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while (request := stream.readline()) and self._answer(connection, stream, request):
                pass

    def _answer(self, connection: socket.socket, stream, request: bytes) -> bool:
        """Whether another request may follow."""
        size = 0
        while (line := stream.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                size = int(value)
        body = stream.read(size)
        received_s = time.perf_counter()
        method, path, _ = request.split(b" ", 2)
        try:
            if method == b"GET":
                connection.sendall(_whole(path))
            elif self._beat.fail_every and next(self._numbers) % self._beat.fail_every == 0:
                connection.sendall(_json(500, {"error": {"message": "a failure on purpose"}}))
            elif path.endswith(b"/completions"):
                self._stream(connection, json.loads(body), received_s)
            else:
                connection.sendall(_json(404, {"error": {"message": "there is no such path"}}))
        except OSError:  # the client has left, as it may
            return False
        return True

    def _stream(self, connection: socket.socket, body: dict, received_s: float) -> None:
        count = int(body.get("max_completion_tokens") or body.get("max_tokens") or 16)
        is_chat = "messages" in body
        end = _chunk({"choices": [], "usage": {"completion_tokens": count}}) + _data(b"[DONE]")
        end += b"0\r\n\r\n"
        connection.sendall(HEAD)
        if self._beat.at_once:
            tokens = b"".join(_token(is_chat, last=i == count - 1) for i in range(count))
            connection.sendall(tokens + end)
            return
        for index in range(count):
            due_s = received_s + self._beat.ttft_s + index * self._beat.itl_s
            time.sleep(max(0.0, due_s - time.perf_counter()))
            connection.sendall(_token(is_chat, last=index == count - 1))
        connection.sendall(end)


def _token(is_chat: bool, *, last: bool) -> bytes:  # noqa: FBT001
    text = f"{time.perf_counter_ns()} "
    said = {"delta": {"content": text}} if is_chat else {"text": text}
    return _chunk({"choices": [{"index": 0, **said, "finish_reason": "length" if last else None}]})


def _chunk(event: dict) -> bytes:
    return _data(json.dumps(event).encode())


def _data(payload: bytes) -> bytes:
    """One event in one chunk of the transfer encoding."""
    event = b"data: " + payload + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


def _whole(path: bytes) -> bytes:
    if path.endswith(b"/v1/models"):
        return _json(200, {"object": "list", "data": [{"id": MODEL, "root": MODEL}]})
    return _json(404, {"error": {"message": "there is no such path"}})


def _json(status: int, value: dict) -> bytes:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def main() -> int:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ttft-ms", type=float, default=50.0)
    parser.add_argument("--itl-ms", type=float, default=10.0)
    parser.add_argument("--fail-every", type=int, default=0)
    parser.add_argument("--at-once", action="store_true")
    flags = parser.parse_args()
    beat = Beat(flags.ttft_ms / 1e3, flags.itl_ms / 1e3, flags.fail_every, flags.at_once)
    metronome = Metronome(beat, flags.port)
    print(metronome.port, flush=True)
    metronome.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What another server puts into places where nobody looks for it: pieces of a key, cookies, words after the end."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from coordinator.edge.gateway.hearing import OpenAiListener
from coordinator.edge.gateway.upstream_run import Called, UpstreamFailed, UpstreamRun, client
from coordinator.upstreams.settings import DeploymentSettings, Provider
from tests.unit.coordinator.edge.gateway.scripted_upstream import (
    STREAM,
    Upstream,
    chunk,
    reply,
    stream,
    upstream,
)

SECRET = "sk-very-secret-0123456789"
PIECE = SECRET[:10]


def called(server: Upstream, **fields: Any) -> Called:
    place = DeploymentSettings(
        deployment_id="g/1",
        group="g",
        provider=Provider.OPENAI,
        model="m",
        api_base=f"{server.url}/v1",
        api_key=SECRET,
        **fields,
    )
    return Called(place, "chat/completions", b"{}", OpenAiListener(), 1)


def error_event(message: object) -> bytes:
    return b"data: " + orjson.dumps({"error": {"message": message}}) + b"\n\n"


ECHOES = {
    "cut in an error event": stream(error_event("x" * 285 + SECRET)),
    "within an error event": stream(error_event({"key": SECRET})),
    "cut in a finish reason": stream(chunk(finish_reason="y" * 30 + SECRET)),
    "media type": reply(200, b"x", content_type=f"text/{SECRET}"),
    "cut in a media type": reply(200, b"x", content_type="text/" + "z" * 30 + SECRET),
    "encoding": reply(200, b"", content_type=STREAM, content_encoding=SECRET),
}


@pytest.mark.parametrize("kind", ECHOES)
async def test_no_piece_of_a_key_is_told(kind):
    async with upstream(ECHOES[kind]) as server, client() as http:
        run = UpstreamRun(called(server), http)
        await run.submit()
        with pytest.raises(UpstreamFailed) as failed:
            await run.next_delta()
    assert PIECE not in str(failed.value)
    assert len(str(failed.value)) < 400


async def test_a_servers_cookies_are_not_kept():
    """They would be sent with the next tenant's request, and to other servers of the same host."""
    refusal = reply(500, {}, set_cookie="who=first; Path=/")
    async with upstream(refusal) as server, client() as http:
        for _ in range(2):
            run = UpstreamRun(called(server), http)
            await run.submit()
            with pytest.raises(UpstreamFailed):
                await run.next_delta()
        assert not http.cookies
    assert len(server.asked) == 2
    assert all("cookie" not in headers for _, headers, _ in server.asked)

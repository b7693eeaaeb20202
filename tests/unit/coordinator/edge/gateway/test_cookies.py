"""What another server wants to be reminded of: nothing."""

from __future__ import annotations

import pytest

from coordinator.edge.gateway.hearing import OpenAiListener
from coordinator.edge.gateway.upstream_run import Called, UpstreamFailed, UpstreamRun, client
from coordinator.upstreams.settings import DeploymentSettings, Provider
from tests.unit.coordinator.edge.gateway.scripted_upstream import reply, upstream


async def test_a_servers_cookies_are_not_kept():
    """They would be sent with the next tenant's request, and to other servers of the same host."""
    refusal = reply(500, {}, set_cookie="who=first; Path=/")
    async with upstream(refusal) as server, client() as http:
        place = DeploymentSettings(
            deployment_id="g/1",
            group="g",
            provider=Provider.OPENAI,
            model="m",
            api_base=f"{server.url}/v1",
        )
        for _ in range(2):
            called = Called(place, "chat/completions", b"{}", OpenAiListener(), 1)
            run = UpstreamRun(called, http)
            run.submit()
            with pytest.raises(UpstreamFailed):
                await run.next_delta()
        assert not http.cookies
    assert len(server.asked) == 2
    assert all("cookie" not in headers for _, headers, _ in server.asked)

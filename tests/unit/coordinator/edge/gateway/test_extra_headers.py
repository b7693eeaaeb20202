"""Headers that an operator adds for a server stand in the place of ours, however they are spelled."""

from __future__ import annotations

import httpx
import pytest

from coordinator.edge.gateway.upstream_run import headers_of
from coordinator.upstreams.settings import DeploymentSettings, Provider

OURS = {Provider.OPENAI: "Authorization", Provider.ANTHROPIC: "X-Api-Key"}


@pytest.mark.parametrize("provider", OURS)
def test_an_operators_header_is_sent_instead_of_ours(provider):
    name = OURS[provider]
    place = DeploymentSettings(
        deployment_id="g/1",
        group="g",
        provider=provider,
        model="m",
        api_base="http://h/v1",
        api_key="ours",
        headers={name: "theirs", "ACCEPT": "x/y", "X-Team": "a"},
    )
    sent = httpx.Headers(headers_of(place, "text/event-stream"))
    assert sent.get_list(name) == ["theirs"]
    assert sent.get_list("accept") == ["x/y"]
    assert sent.get_list("x-team") == ["a"]

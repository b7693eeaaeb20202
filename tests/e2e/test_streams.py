"""Streams equal whole answers, with each feature and in each dialect; `tests/e2e/stream_campaign.py` has them all."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.schema_campaign import served
from tests.e2e.stream_campaign import FEATURES, THINKING, THINKS, prompts, run
from tests.marks import deep

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("model")]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with served(None, "--tool-prompt", "hermes", random=True) as serving:
        yield serving


@pytest.mark.parametrize("count", [1, deep(40)])
def test_a_stream_says_what_the_whole_answer_says(client: httpx.Client, count: int) -> None:
    assert run(client, list(FEATURES), prompts(count, seed=count)) == {}
    assert client.get("/cluster/audit").json()["balanced"]


@pytest.mark.deep
def test_a_stream_tells_thoughts_as_the_whole_answer_does() -> None:
    with served(None, "--tool-prompt", "hermes", *THINKING, random=True) as client:
        assert run(client, list(THINKS), prompts(20, seed=2)) == {}
        assert client.get("/cluster/audit").json()["balanced"]

"""Keys of clients and of other servers are in nothing that a server says, whatever goes wrong, however much it logs."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.accounts.accounts import Accounts, AccountSettings
from coordinator.accounts.terms import KeyTerms
from protocol.clock import SystemClock
from tests.unit.coordinator.edge.gateway.scripted_upstream import reply, upstream
from tests.unit.coordinator.edge.gateway.test_model_groups import (
    BROKEN,
    HELLO,
    SECRET,
    edge,
    entry,
)

HEADER = "a-value-that-only-the-other-server-knows"
ECHOED = {"error": {"message": f"no: {SECRET} {HEADER}", "code": f"{SECRET}"}}
KINDS = BROKEN | {
    f"refused {status}": reply(status, ECHOED, x_told=f"{SECRET} {HEADER}")
    for status in (400, 403, 404, 413, 422, 503, 529)
}
PAGES = (
    *("/metrics", "/cluster", "/cluster/deployments", "/keys", "/usage?group_by=request", "/ui"),
    *("/v1/models", "/openapi.json", "/health", "/usage?format=csv&group_by=request", "/nowhere"),
)


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
async def test_no_secret_is_told(served_model, tmp_path, caplog, provider):
    caplog.set_level("DEBUG")
    accounts = Accounts.open(AccountSettings(tmp_path / "keys.db"), SystemClock())
    accounts.start(asyncio.get_running_loop())
    secret = (await accounts.create(KeyTerms(tenant="a"))).secret
    tail = secret.partition(".")[2]
    told: list[str] = []
    async with upstream(*[act for act in KINDS.values() for _ in "ab"]) as server:
        extra = {"provider": provider, "extra_headers": {"x-gateway": HEADER}}
        places = [entry(server, f"g{number}", **extra) for number in range(2 * len(KINDS))]
        options = {"accounts": accounts, "admin_keys": ["boss-key"], "router": {"num_retries": 0}}
        async with edge(served_model, tmp_path, *places, clock=SystemClock(), **options) as client:
            for number in range(2 * len(KINDS)):
                body = {"model": f"g{number}", "messages": HELLO, "stream": bool(number % 2)}
                headers = {"authorization": f"Bearer {secret}", "x-request-id": f"n{number}"}
                answer = await client.post("/v1/chat/completions", json=body, headers=headers)
                told += [answer.text, str(answer.headers)]
            for page in PAGES:
                answer = await client.get(page, headers={"authorization": "Bearer boss-key"})
                told += [answer.text, str(answer.headers)]
    await accounts.close()
    assert len(server.asked) == 2 * len(KINDS)
    assert all(HEADER in asked[1].values() for asked in server.asked)
    told += [caplog.text, *(repr(record.__dict__) for record in caplog.records)]
    said = "\n".join(told)
    for word in (SECRET, HEADER, tail, "boss-key"):
        assert word not in said, said[said.index(word) - 300 : said.index(word) + 100]
    for file in tmp_path.iterdir():
        if file.name != "router.yaml":
            assert not any(word.encode() in file.read_bytes() for word in (SECRET, HEADER, tail))

"""Workers die, clients leave: real processes, real signals, nothing lost and nothing left."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.server import Server
from tests.marks import deep
from tests.patience import PATIENCE_S, until
from tests.plain_http import NO_AUTHORITIES

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("model")]
MODEL = "smollm2-135m"
STORY = "Tell me a long story about a lighthouse keeper and the sea."


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--pd", "1p1d", "--dtype", "float32", "--kv-cache-memory", "512MiB") as server:
        yield server


def body(prompt: str, max_tokens: int, **more: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **more,
    }


def tokens(server: Server, prompt: str, max_tokens: int) -> list[int]:
    found: list[int] = server.complete(**body(prompt, max_tokens))["choices"][0]["token_ids"]
    return found


_faultless: dict[str, list[int]] = {}


def faultless(server: Server, prompt: str, max_tokens: int) -> list[int]:
    """What the server says while nothing happens; asked once of each prompt."""
    if prompt not in _faultless:
        _faultless[prompt] = tokens(server, prompt, max_tokens)
    return _faultless[prompt]


def settled(server: Server) -> dict[str, Any]:
    """The audit once nothing is live; its workers without the counts of cached blocks."""
    until(lambda: server.cluster()["requests"]["live"] == 0, "the end of all requests")
    until(lambda: all(not w["holds"] for w in server.audit()["workers"]), "the end of all holds")
    audit = server.audit()
    for worker in audit["workers"]:
        blocks = worker.pop("blocks")
        worker["available"] = blocks["free"] + blocks["cached"]
        worker["held"] = blocks["held"]
    return audit


@pytest.mark.parametrize(
    ("role", "after_s"),
    [
        *(deep("prefill", 0.0), ("prefill", 0.4), deep("prefill", 1.0)),
        *(deep("decode", 0.0), deep("decode", 0.4), ("decode", 1.0)),
    ],
)
def test_killed_worker_costs_no_token(server: Server, role: str, after_s: float) -> None:
    prompts = [f"{STORY} Version {i}, killed {role}." for i in range(4)]
    expected = [faultless(server, prompt, 40) for prompt in prompts]
    victim = server.worker(role)
    other = server.worker("decode" if role == "prefill" else "prefill")
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(tokens, server, prompt, 40) for prompt in prompts]
        threading.Event().wait(after_s)
        os.kill(victim["pid"], signal.SIGKILL)
        until(
            lambda: victim["pid"] not in [w["pid"] for w in server.cluster()["workers"]],
            "the coordinator noticing",
        )
        assert [future.result() for future in futures] == expected
    until(lambda: len(server.cluster()["workers"]) == 2, "the restart")
    until(lambda: server.worker(role)["state"] == "ready", "the restarted worker's probe")
    assert server.worker(other["role"])["pid"] == other["pid"]
    assert settled(server)["balanced"]


def test_stopped_worker_is_replaced_and_fenced(server: Server) -> None:
    expected = tokens(server, STORY, 60)
    victim = server.worker("decode")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(tokens, server, STORY, 60)
        threading.Event().wait(0.5)
        os.kill(victim["pid"], signal.SIGSTOP)
        try:
            assert future.result(PATIENCE_S) == expected
        finally:
            os.kill(victim["pid"], signal.SIGCONT)
    until(
        lambda: any(
            w["role"] == "decode" and w["state"] == "ready" for w in server.cluster()["workers"]
        ),
        "the stopped worker coming back",
    )
    assert settled(server)["balanced"]


@pytest.mark.parametrize(
    ("stopped_s", "answers", "length"),
    [(4.0, 1, 60), deep(20.0, 8, 200)],
    ids=["within-an-answer", "longer-than-eight"],
)
def test_stopped_coordinator_goes_on_as_if_nothing_had_been(
    server: Server, stopped_s: float, answers: int, length: int
) -> None:
    expected = tokens(server, STORY, length)
    until(lambda: len(server.cluster()["workers"]) == 2, "both workers")
    before = server.cluster()
    with ThreadPoolExecutor(answers) as pool:
        futures = [pool.submit(tokens, server, STORY, length) for _ in range(answers)]
        threading.Event().wait(0.5)
        coordinator = server.coordinator_pid()
        os.kill(coordinator, signal.SIGSTOP)
        threading.Event().wait(stopped_s)
        os.kill(coordinator, signal.SIGCONT)
        assert [future.result(PATIENCE_S) for future in futures] == [expected] * answers
    after = server.cluster()
    assert after["replays"] == before["replays"]
    starts = [[w["incarnation"] for w in view["workers"]] for view in (before, after)]
    assert starts[0] == starts[1]
    assert settled(server)["balanced"]


def test_coordinator_comes_back_and_orphans_are_freed(server: Server) -> None:
    expected = tokens(server, STORY, 8)
    orphan = threading.Thread(target=impatient, args=(server, STORY, 5.0))
    orphan.start()
    until(lambda: server.cluster()["requests"]["live"] == 1, "the request being live")
    os.kill(server.coordinator_pid(), signal.SIGKILL)
    orphan.join()
    until(server.is_healthy, "the coordinator coming back")
    assert tokens(server, STORY, 8) == expected
    assert settled(server)["balanced"]


def leave_early(server: Server, prompt: str, after_chunks: int) -> None:
    """A client that closes its connection in the middle of a stream, or before its first token."""
    with (
        httpx.Client(timeout=60, verify=NO_AUTHORITIES) as client,
        client.stream(
            "POST", f"{server.url}/v1/completions", json=body(prompt, 200, stream=True)
        ) as reply,
    ):
        for index, _ in enumerate(reply.iter_lines()):
            if index >= after_chunks:
                return


def impatient(server: Server, prompt: str, patience_s: float = 0.3) -> None:
    """A client that gives up, or is cut off, before anything came."""
    try:
        httpx.post(
            f"{server.url}/v1/completions",
            json=body(prompt, 200),
            timeout=patience_s,
            verify=NO_AUTHORITIES,
        )
    except httpx.TransportError:
        return


def two_turns(server: Server) -> None:
    """Blocks go from prefill to decode and, for the second turn, back: every connection is made then."""
    turn = [*range(200, 290)]
    asked = {"model": MODEL, "max_tokens": 60, "ignore_eos": True, "return_token_ids": True}
    answer = server.complete(prompt=turn, **asked)["choices"][0]["token_ids"]
    server.complete(prompt=[*turn, *answer, 101, 102], **asked)
    until(
        lambda: server.worker("prefill")["totals"]["prefix_fetched_tokens"] > 0,
        "history being fetched from the decode worker",
    )


@pytest.mark.parametrize("count", [60, deep(500)])
def test_hundreds_of_requests_with_disconnects_leave_nothing(count: int) -> None:
    arguments = ["--pd", "1p1d", "--kv-cache-memory", "512MiB", "--max-num-seqs", "32"]
    with Server(*arguments) as server:
        two_turns(server)
        before = settled(server)
        rng = random.Random(3)

        def one(index: int) -> int:
            prompt = " ".join(["word"] * rng.randrange(1, 200)) + str(index % 17)
            kind = index % 10
            if kind == 0:
                leave_early(server, prompt, rng.randrange(0, 12))
            elif kind == 5:
                impatient(server, prompt)
            else:
                assert len(tokens(server, prompt, 1 + index % 12)) == 1 + index % 12
            return index

        with ThreadPoolExecutor(24) as pool:
            assert sorted(pool.map(one, range(count))) == list(range(count))
        pause, after = threading.Event(), settled(server)
        for _ in range(60):  # quiescence comes soon, descriptors and threads included
            if after == before:
                break
            pause.wait(0.5)
            after = settled(server)
        assert after["balanced"]
        assert after["workers"] == before["workers"]
        assert after == before


def test_over_capacity_is_429_and_what_is_admitted_completes() -> None:
    arguments = ["--pd", "1p1d", "--kv-cache-memory", "24MiB", "--max-model-len", "512"]
    with Server(*arguments) as server:
        prompt = " ".join(["ocean"] * 150)

        def one(index: int) -> httpx.Response:
            request = body(f"{index} {prompt}", 30)
            return httpx.post(
                f"{server.url}/v1/completions", json=request, timeout=120, verify=NO_AUTHORITIES
            )

        with ThreadPoolExecutor(30) as pool:
            replies = list(pool.map(one, range(30)))
        refused = [reply for reply in replies if reply.status_code == 429]
        served = [reply for reply in replies if reply.status_code == 200]
        assert len(refused) + len(served) == 30
        assert refused
        assert served
        assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)
        assert all(len(reply.json()["choices"][0]["token_ids"]) == 30 for reply in served)
        computed = server.worker("prefill")["totals"]["prefill_tokens"]
        prompts = sum(reply.json()["usage"]["prompt_tokens"] for reply in served)
        assert computed <= prompts + 64, "a refused prompt was computed"
        assert settled(server)["balanced"]


def test_nothing_lies_in_dev_shm(server: Server) -> None:
    tokens(server, STORY, 4)
    assert [p.name for p in Path("/dev/shm").iterdir() if "baton" in p.name] == []

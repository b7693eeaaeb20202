"""Pools that grow, shrink and change roles under load: real processes, every token checked, nothing lost and nothing left."""

from __future__ import annotations

import functools
import itertools
import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deploy.cli import main
from deploy.host.memory import available_bytes
from tests.e2e.crowd import Asked, Crowd, mock_root, stream_one
from tests.e2e.lone_reader import LoneReader
from tests.e2e.server import MOCK, PACED, Server
from tests.marks import deep
from tests.patience import in_time, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
ARGUMENTS = ("--dtype", "float32", "--kv-cache-memory", "512MiB", "--max-num-seqs", "256")
LEASE_S = 30.0
"""As nobody chose another: who is back within this time has not waited for the end of a lease."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server("--pd", "1p1d", "--drain-grace", "2", *ARGUMENTS, program=PACED) as server:
        yield server


def scale(server: Server, **wanted: int) -> dict[str, Any]:
    reply = server.client.post("/cluster/scale", json=wanted)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def asks(server: Server, **wanted: int) -> int:
    return server.client.post("/cluster/scale", json=wanted).status_code


def drain(server: Server, worker: str) -> int:
    return server.client.post(f"/cluster/workers/{worker}/drain").status_code


def states(server: Server) -> dict[str, tuple[str, str]]:
    """Role and state by worker, of those that are here."""
    return {w["id"]: (w["role"], w["state"]) for w in server.cluster()["workers"]}


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def is_streaming(server: Server, count: int) -> bool:
    """Whether so many answers are being written."""
    return int(server.cluster()["requests"]["phases"]["decode"]) >= count


def is_shape(server: Server, prefill: int, decode: int) -> bool:
    """Whether exactly so many workers are there, ready, and nobody leaves."""
    view = server.cluster()
    ready = [w["role"] for w in view["workers"] if w["state"] == "ready"]
    wanted = {"prefill": prefill, "decode": decode}
    is_full = all(ready.count(role) == count for role, count in wanted.items())
    is_quiet = not view["scaling"]["leaving"] and not view["lost"]
    return is_full and is_quiet and len(view["workers"]) == prefill + decode


def settle(server: Server) -> None:
    """Nothing is live, every account adds up and nothing is held."""
    until(lambda: server.cluster()["requests"]["live"] == 0, "the end of all requests")
    until(lambda: not any(w["holds"] for w in server.audit()["workers"]), "the end of all holds")
    audit = server.audit()
    assert audit["balanced"], audit
    assert audit["coordinator"]["reservations"] == 0
    assert all(worker["leases"] == worker["transfers"] == 0 for worker in audit["workers"])


def asked(seed: int, length: int, max_tokens: int) -> Asked:
    rng = random.Random(seed)
    return Asked([rng.randrange(100, 49_000) for _ in range(length)], max_tokens, seed)


@pytest.mark.parametrize(("users", "streams"), [(40, 28), deep(140, 100)])
def test_pools_grow_and_shrink_while_requests_stream(
    server: Server, users: int, streams: int
) -> None:
    before = len(server.descendants())
    with Crowd(server.url, users, (80, 160)) as crowd:
        until(lambda: is_streaming(server, streams), "the load")
        assert scale(server, prefill=3, decode=2)["target"] == {"prefill": 3, "decode": 2}
        until(lambda: is_shape(server, 3, 2), "3p2d")
        crowd.await_more(users)
        until(lambda: is_streaming(server, streams), "the load")
        scale(server, prefill=1, decode=1)
        until(lambda: is_shape(server, 1, 1), "1p1d")
        crowd.await_more(users)
    assert crowd.failures == []
    settle(server)
    until(lambda: len(server.descendants()) == before, "the end of the processes")
    view = server.cluster()
    assert view["target"] == {"prefill": 1, "decode": 1}
    assert view["lost"] == []
    print(f"{crowd.completed} answers, {crowd.tokens} tokens, {view['replays']} replays")


@pytest.mark.deep
def test_scaling_again_changes_nothing_and_the_last_word_counts(server: Server) -> None:
    assert scale(server, prefill=2)["started"] == ["prefill-1"]
    assert scale(server, prefill=2)["started"] == []
    assert scale(server, prefill=3, decode=2)["started"] == ["prefill-2", "decode-1"]
    scale(server, prefill=1, decode=1)
    until(lambda: is_shape(server, 1, 1), "1p1d")
    assert scale(server, prefill=1, decode=1)["drained"] == []


@pytest.mark.alone
def test_flip_takes_less_than_a_second_and_keeps_the_cache(server: Server) -> None:
    scale(server, prefill=2)
    until(lambda: is_shape(server, 2, 1), "2p1d")
    first = asked(1, 200, 4)
    assert stream_one(server.url, first) == first.expected(mock_root())
    with Crowd(server.url, 30) as crowd:
        until(lambda: server.cluster()["requests"]["live"] >= 30, "the load")
        flips = itertools.cycle([("prefill-0", "decode"), ("decode-0", "prefill")])
        in_time(lambda: flip(server, *next(flips)), 1.0)
        if states(server)["decode-0"][0] == "decode":
            flip(server, "decode-0", "prefill")
        assert server.cluster()["target"] == {"prefill": 2, "decode": 1}
        crowd.await_more(30)
    assert crowd.failures == []
    cached = server.complete(**first.body() | {"stream": False})["usage"]
    assert cached["prompt_tokens_details"]["cached_tokens"] >= 192
    settle(server)


def flip(server: Server, worker: str, role: str) -> float:
    """How long it took until the worker is ready in its new role."""
    started_s = time.monotonic()
    reply = server.client.post(f"/cluster/workers/{worker}/role", json={"role": role})
    assert reply.status_code == 200, reply.text
    assert states(server)[worker] == (role, "ready")
    return time.monotonic() - started_s


@pytest.mark.deep
def test_flipped_worker_keeps_its_role_over_restarts_of_everything(server: Server) -> None:
    scale(server, prefill=2)
    until(lambda: is_shape(server, 2, 1), "2p1d")
    server.client.post("/cluster/workers/prefill-1/role", json={"role": "decode"})
    assert server.audit()["balanced"]  # who answers that has heard of its role, too
    for pid in (server.coordinator_pid(), None):
        victim = pid or next(
            w["pid"] for w in server.cluster()["workers"] if w["id"] == "prefill-1"
        )
        os.kill(victim, signal.SIGKILL)
        until(functools.partial(is_gone, victim), "the death")
        until(lambda: server.is_healthy() and is_shape(server, 1, 2), "1p2d")
        assert states(server)["prefill-1"] == ("decode", "ready")


def test_drained_worker_hands_over_what_outlasts_the_grace(server: Server) -> None:
    scale(server, decode=2)
    until(lambda: is_shape(server, 1, 2), "1p2d")
    requests = [asked(seed, 20, 150) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(stream_one, server.url, request) for request in requests]
        until(lambda: server.cluster()["requests"]["phases"]["decode"] == 8, "the streams")
        assert drain(server, "decode-0") == 200
        assert states(server).get("decode-0", ("decode", "draining")) == ("decode", "draining")
        until(lambda: is_shape(server, 1, 1), "the drain")
        for request, answer in zip(requests, answers, strict=True):
            assert answer.result() == request.expected(mock_root())
    assert "decode-0" not in states(server)
    settle(server)


def computed_at(server: Server, request: Asked) -> str:
    """Stream a request; the prefill worker that has its blocks."""
    before = {w["id"]: w["totals"]["prefill_tokens"] for w in server.cluster()["workers"]}
    assert stream_one(server.url, request) == request.expected(mock_root())

    def grown() -> list[str]:
        return [
            w["id"]
            for w in server.cluster()["workers"]
            if w["role"] == "prefill"
            and w["totals"]["prefill_tokens"] >= before[w["id"]] + len(request.prompt)
        ]

    until(lambda: bool(grown()), "a heartbeat")
    return grown()[0]


@pytest.mark.deep
def test_drained_prefill_worker_stays_while_its_blocks_are_leased(
    server: Server, tmp_path: Path
) -> None:
    """A reader keeps its lease for long: the bytes stay right until it says Pulled, and only then the worker goes."""
    scale(server, prefill=2)
    until(lambda: is_shape(server, 2, 1), "2p1d")
    request = asked(1, 400, 8)
    holder = computed_at(server, request)
    worker = next(w for w in server.cluster()["workers"] if w["id"] == holder)
    with LoneReader(worker, tmp_path) as reader:
        assert reader.borrow(request.prompt) == 25
        assert drain(server, holder) == 200
        with Crowd(server.url, 20) as crowd:
            crowd.await_more(60)
        assert crowd.failures == []
        assert states(server)[holder] == ("prefill", "draining")
        assert reader.read() is None
        assert states(server)[holder] == ("prefill", "draining")
        reader.give_back()
        assert until(lambda: is_shape(server, 1, 1), "the drain") < LEASE_S
        assert "gone" in (reader.read() or "") or "cannot reach" in (reader.read() or "")
    assert server.cluster()["replays"] == 0
    settle(server)


@pytest.mark.deep
def test_lease_that_nobody_ends_holds_a_drained_worker_no_longer_than_it_runs(
    tmp_path: Path,
) -> None:
    pools = ("--pd", "2p1d", "--kv-lease-duration", "3")
    with Server(*pools, *ARGUMENTS, program=PACED) as server:
        request = asked(2, 400, 8)
        holder = computed_at(server, request)
        worker = next(w for w in server.cluster()["workers"] if w["id"] == holder)
        with LoneReader(worker, tmp_path) as reader:
            borrowed_s = time.monotonic()
            assert reader.borrow(request.prompt) == 25
            assert drain(server, holder) == 200
            until(lambda: is_shape(server, 1, 1), "the drain")
            assert 3.0 < time.monotonic() - borrowed_s < LEASE_S
        settle(server)


def test_workers_killed_while_the_pools_change_cost_no_request(server: Server) -> None:
    with Crowd(server.url, 40) as crowd:
        until(lambda: server.cluster()["requests"]["live"] >= 40, "the load")
        scale(server, prefill=2, decode=3)
        until(lambda: len(states(server)) >= 4, "new workers")
        os.kill(server.worker("decode")["pid"], signal.SIGKILL)
        until(lambda: is_shape(server, 2, 3), "2p3d")
        scale(server, prefill=1, decode=1)
        leaving = [w for w in server.cluster()["workers"] if w["state"] == "draining"]
        for worker in leaving[:2]:
            os.kill(worker["pid"], signal.SIGKILL)
        until(lambda: is_shape(server, 1, 1), "1p1d")
        crowd.await_more(60)
    assert crowd.failures == []
    settle(server)


def test_coordinator_killed_during_a_drain_goes_on_with_it(server: Server) -> None:
    scale(server, prefill=2, decode=2)
    until(lambda: is_shape(server, 2, 2), "2p2d")
    reader = next(w["pid"] for w in server.cluster()["workers"] if w["id"] == "decode-0")
    os.kill(reader, signal.SIGSTOP)
    try:
        assert drain(server, "decode-0") == 200
        assert drain(server, "prefill-0") == 200
        os.kill(server.coordinator_pid(), signal.SIGKILL)
    finally:
        os.kill(reader, signal.SIGCONT)
    until(lambda: server.is_healthy() and is_shape(server, 1, 1), "1p1d")
    assert set(states(server)) == {"prefill-1", "decode-1"}
    request = asked(5, 50, 20)
    assert stream_one(server.url, request) == request.expected(mock_root())
    settle(server)


@pytest.mark.deep
def test_coordinator_killed_after_scaling_finds_the_pools_as_they_were(server: Server) -> None:
    scale(server, prefill=3, decode=2)
    until(lambda: is_shape(server, 3, 2), "3p2d")
    pids = {w["id"]: w["pid"] for w in server.cluster()["workers"]}
    os.kill(server.coordinator_pid(), signal.SIGKILL)
    until(lambda: server.is_healthy() and is_shape(server, 3, 2), "3p2d again")
    assert {w["id"]: w["pid"] for w in server.cluster()["workers"]} == pids
    until(lambda: asks(server, prefill=1, decode=1) == 200, "the launcher at the new coordinator")
    until(lambda: is_shape(server, 1, 1), "1p1d")
    os.kill(server.coordinator_pid(), signal.SIGKILL)
    until(lambda: server.is_healthy() and is_shape(server, 1, 1), "1p1d again")


def test_commands_change_the_pools_and_say_what_is_wrong(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ("--url", server.url)
    assert main(["scale", "prefill=2", *url]) == 0
    assert main(["role", "prefill-1", "decode", *url]) == 0
    assert main(["drain", "decode-0", *url]) == 0
    assert "done: decode-0 left" in capsys.readouterr().out
    assert states(server) == {
        "prefill-0": ("prefill", "ready"),
        "prefill-1": ("decode", "ready"),
    }
    assert main(["drain", "prefill-1", *url]) == 1
    assert "add one first: baton scale decode=2" in capsys.readouterr().err
    assert main(["scale", "decode=0", *url]) == 1
    assert "at least one decode worker" in capsys.readouterr().err
    assert main(["drain", "decode-7", *url]) == 1
    assert "there are: prefill-0, prefill-1" in capsys.readouterr().err


@pytest.mark.alone
def test_worker_that_does_not_fit_into_memory_is_refused_with_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    third = str(int(available_bytes() * 0.3))
    with Server("--pd", "1p1d", "--kv-cache-memory", third, program=MOCK) as server:
        assert main(["scale", "prefill=2", "--url", server.url]) == 1
        assert "prefill-1 was not started: a KV pool of" in capsys.readouterr().err
        view = server.cluster()
        assert view["target"] == {"prefill": 1, "decode": 1}
        assert "now available; free memory" in view["scaling"]["refused"][0]["reason"]
        assert is_shape(server, 1, 1)


def test_the_autoscaler_starts_what_the_target_needs() -> None:
    """A TPOT that one decode worker cannot hold: the second is started, as far as the range goes, and tokens are right."""
    flags = ("--autoscale", "prefill=1..1", "decode=1..2", "--slo", "ttft:60000", "tpot:0.001")
    with Server("--pd", "1p1d", *flags, *ARGUMENTS, program=PACED) as server:
        with Crowd(server.url, 12, (20, 40)) as crowd:
            until(lambda: is_shape(server, 1, 2), "the second decode worker")
            crowd.await_more(12)
        assert crowd.failures == []
        shown = server.cluster()["autoscaler"]
        assert shown["enabled"]
        assert [d["decode"] for d in shown["decisions"] if d["decision"] == "scale"][-1] == 2
        settle(server)


@pytest.mark.deep
def test_an_idle_model_has_no_process_and_a_held_request_starts_them() -> None:
    ranges = ("--autoscale", "prefill=0..1,decode=0..1,idle=2", "--slo", "ttft:60000", "tpot:1000")
    with Server("--pd", "1p1d", *ranges, *ARGUMENTS, program=PACED) as server:
        pids = [worker["pid"] for worker in server.cluster()["workers"]]
        for seed in range(2):
            until(lambda: is_shape(server, 0, 0), "the end of idle workers")
            for pid in pids:
                until(functools.partial(is_gone, pid), "the end of their processes")
            assert server.client.get("/health").status_code == 200
            held = [asked(10 * seed + number, 50, 8) for number in range(3)]
            with ThreadPoolExecutor(3) as pool:
                answers = list(pool.map(lambda one: stream_one(server.url, one), held))
            assert answers == [one.expected(mock_root()) for one in held]
            pids = [worker["pid"] for worker in server.cluster()["workers"]]
        settle(server)


@pytest.mark.deep
def test_pool_of_a_worker_that_left_is_unmapped_everywhere(server: Server) -> None:
    scale(server, prefill=2)
    until(lambda: is_shape(server, 2, 1), "2p1d")
    reader = server.worker("decode")["pid"]
    with Crowd(server.url, 20) as crowd:
        crowd.await_more(40)
    assert crowd.failures == []
    assert num_pools(reader) == 3
    for _ in range(2):
        scale(server, prefill=1)
        until(lambda: num_pools(reader) == 2, "the end of the mapping")
        scale(server, prefill=2)
        until(lambda: is_shape(server, 2, 1) and num_pools(reader) == 3, "2p1d")


def num_pools(pid: int) -> int:
    """KV pools that a process has mapped, its own included."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return len({line.split()[4] for line in lines if "memfd:baton-kv" in line})


@pytest.mark.deep
def test_real_model_answers_alike_while_its_pools_change() -> None:
    """Greedy, float32: the same text before, during and after, from whichever workers."""
    sizes = ("--dtype", "float32", "--kv-cache-memory", "256MiB", "--drain-grace", "1")
    with Server("--pd", "1p1d", *sizes) as server:
        bodies = [greedy(f"Tell me about the number {index}.") for index in range(6)]
        before = [server.complete(**body)["choices"][0]["token_ids"] for body in bodies]
        with ThreadPoolExecutor(6) as pool:
            during = [pool.submit(functools.partial(server.complete, **body)) for body in bodies]
            scale(server, decode=2)
            until(lambda: is_shape(server, 1, 2), "1p2d")
            during += [pool.submit(functools.partial(server.complete, **body)) for body in bodies]
            until(lambda: server.cluster()["requests"]["phases"]["decode"] > 2, "streams")
            assert drain(server, "decode-0") == 200
            until(lambda: is_shape(server, 1, 1), "1p1d")
            found = [answer.result()["choices"][0]["token_ids"] for answer in during]
        assert found == before * 2
        assert list(states(server)) == ["prefill-0", "decode-1"]
        settle(server)


def greedy(prompt: str) -> dict[str, Any]:
    sizes = {"max_tokens": 48, "temperature": 0, "ignore_eos": True}
    return {"model": "smollm2-135m", "prompt": prompt, "return_token_ids": True, **sizes}

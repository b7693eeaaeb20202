"""Workers that join and are lost in one breath, as a coordinator reads it that slept: hello and end in one inbox."""

from __future__ import annotations

import msgspec

from protocol.messages.launcher import WorkerExited
from protocol.messages.reports import Hello
from tests.sim.cluster import Cluster, run


def other_start(cluster: Cluster, **changes: object) -> Hello:
    record = cluster.service.books.registry.get("decode-0")
    assert record is not None
    return msgspec.structs.replace(record.hello, incarnation="another", **changes)


def test_a_hello_that_comes_after_its_process_ended_is_not_believed() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        registry, hear = cluster.service.books.registry, cluster.service.inbox.on_message
        hello = other_start(cluster)
        hear(b"l", WorkerExited(worker_id="decode-0", pid=hello.pid, status=0, restart_in_s=None))
        hear(b"x", hello)
        assert registry.get("decode-0") is None
        hear(b"x", msgspec.structs.replace(hello, pid=hello.pid + 1))
        assert registry.get("decode-0") is not None

    run(scenario, prefill=1, decode=2)


def test_long_afterwards_a_process_of_the_same_number_is_another_one() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        registry, hear = cluster.service.books.registry, cluster.service.inbox.on_message
        hello = other_start(cluster)
        hear(b"l", WorkerExited(worker_id="decode-0", pid=hello.pid, status=0, restart_in_s=None))
        await cluster.sleep(6.0)
        hear(b"x", hello)
        record = registry.get("decode-0")
        assert record is not None
        assert record.incarnation == "another"

    run(scenario, prefill=1, decode=2)


def test_a_worker_that_was_lost_before_its_probe_left_is_not_probed() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        hello = other_start(cluster, worker_id="decode-9", pid=77)
        cluster.service.inbox.on_message(b"x", hello)
        cluster.service.liveness.lose("decode-9", "process exited")
        await cluster.sleep(0.5)
        assert len(cluster.service.requests) == 0

    run(scenario, prefill=1, decode=1)

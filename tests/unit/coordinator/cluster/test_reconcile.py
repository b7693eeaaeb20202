"""Heartbeats that miss a request: it is replayed after several in a row, and only those of workers that have it count."""

from __future__ import annotations

from coordinator.cluster.lifecycle import RequestLife
from coordinator.cluster.reconcile import MAX_STRIKES
from coordinator.cluster.registry import WorkerRecord
from coordinator.cluster.service_api import Generation
from protocol.messages.reports import Heartbeat
from protocol.sampling import SamplingParams
from tests.sim.cluster import Cluster, run


def admitted(cluster: Cluster, name: str = "r") -> RequestLife:
    generation = Generation(name, list(range(20)), SamplingParams(max_tokens=9, temperature=0.0))
    cluster.service.submit(generation)
    return cluster.service.requests._lives[name]


def worker(cluster: Cluster, worker_id: str) -> WorkerRecord:
    record = cluster.service.books.registry.get(worker_id)
    assert record is not None
    return record


def beat(
    cluster: Cluster,
    worker_id: str,
    *live: tuple[str, int],
    heard: int | None = None,
    listens: bool = True,
) -> None:
    record = worker(cluster, worker_id)
    message = Heartbeat(
        incarnation=record.incarnation,
        identity=record.identity,
        step=0,
        busy=False,
        load=record.load,
        heard=record.sent_seq if heard is None else heard,
        live=list(live),
    )
    cluster.service.inbox.on_message(record.identity, message)
    if listens:
        cluster.service.reconciler.heard_all()


def test_only_misses_in_a_row_count() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        life = admitted(cluster)
        for _ in range(3):
            for _ in range(MAX_STRIKES - 1):
                beat(cluster, "decode-0")
            beat(cluster, "decode-0", ("r", 1))
        assert life.attempt == 1
        for _ in range(MAX_STRIKES):
            beat(cluster, "decode-0")
        assert life.attempt == 2

    run(scenario, prefill=1, decode=1)


def test_what_waited_while_nobody_listened_counts_once() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        life = admitted(cluster)
        for _ in range(10 * MAX_STRIKES):
            beat(cluster, "decode-0", listens=False)
        assert (life.attempt, life.strikes) == (1, {"decode-0": 1})
        for _ in range(MAX_STRIKES):
            cluster.service.tick()
            beat(cluster, "decode-0", listens=False)
        assert life.attempt == 2

    run(scenario, prefill=1, decode=1)


def test_a_worker_that_has_it_does_not_speak_for_one_that_has_not() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        life = admitted(cluster)
        for _ in range(MAX_STRIKES):
            beat(cluster, "decode-0", ("r", 1))
            beat(cluster, "prefill-0")
        assert life.attempt == 2

    run(scenario, prefill=1, decode=1)


def test_workers_without_a_part_and_orders_under_way_do_not_count() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        life = admitted(cluster)
        legs = {life.prefill_worker, life.decode_worker}
        others = {record.worker_id for record in cluster.service.books.registry} - legs
        assert len(others) == 2
        for _ in range(MAX_STRIKES):
            for worker_id in others:
                beat(cluster, worker_id)
            for worker_id, order in life.order_seqs.items():
                beat(cluster, worker_id, heard=order - 1)
        assert life.strikes == {}
        assert life.attempt == 1

    run(scenario, prefill=2, decode=2)


def test_a_heartbeat_looks_at_the_requests_of_its_worker_only(monkeypatch) -> None:
    looked: list[str] = []

    def look(life: RequestLife, *_: object) -> bool:
        looked.append(life.request_id)
        return False

    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        await cluster.sleep(1.0)  # the last probe is over
        lives = [admitted(cluster, f"{number}") for number in range(8)]
        monkeypatch.setattr(RequestLife, "is_missed_by", look)
        for record in cluster.service.books.registry:
            looked.clear()
            beat(cluster, record.worker_id)
            own = [life.request_id for life in lives if life.needs(record.worker_id)]
            assert sorted(looked) == own
            assert 0 < len(own) < len(lives)
        monkeypatch.undo()

    run(scenario, prefill=2, decode=2)

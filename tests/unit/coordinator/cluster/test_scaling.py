"""Scaling, drains and flips over the simulated cluster: who leaves when, who serves meanwhile, and that nothing is lost."""

from __future__ import annotations

import pytest

from coordinator.cluster.registry import WorkerState
from coordinator.cluster.service_api import Generation
from protocol.errors import InvalidRequest, NoLauncher, PoolConflict, WorkerNotFound
from protocol.messages.launcher import RoleOrder
from protocol.roles import Role
from protocol.sampling import SamplingParams
from tests.sim.cluster import Cluster, run


def generation(name: str, length: int, max_tokens: int = 20) -> Generation:
    prompt = list(range(length))
    return Generation(name, prompt, SamplingParams(max_tokens=max_tokens, temperature=0.0))


def states(cluster: Cluster) -> dict[str, str]:
    return {record.worker_id: record.state.value for record in cluster.service.books.registry}


def keep_answers_where_they_are(cluster: Cluster) -> None:
    """As without prefix caching: who leaves cannot hand over."""
    cluster.service.router._hands_over = False


async def settle(cluster: Cluster) -> None:
    await cluster.quiet()
    assert cluster.leaks() == []
    assert cluster.misfits() == []


def test_pools_reach_the_numbers_and_nothing_is_lost_on_the_way() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        requests = [generation(str(i), 5 + i, 120) for i in range(10)]
        streams = [cluster.service.submit(request) for request in requests]
        answer = cluster.scaler.scale(prefill=3, decode=2)
        assert answer["started"] == ["prefill-1", "prefill-2", "decode-1"]
        await cluster.sleep(2.0)
        assert list(states(cluster).values()) == ["ready"] * 5
        cluster.scaler.scale(prefill=1, decode=1)
        for request, stream in zip(requests, streams, strict=True):
            assert await cluster.drain(stream) == cluster.oracle(request)
        await settle(cluster)
        assert len(states(cluster)) == 2
        assert cluster.service.cluster()["lost"] == []

    run(scenario, prefill=1, decode=1)


def test_scaling_is_a_target_and_not_a_step() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        assert cluster.scaler.scale(decode=3)["started"] == ["decode-1", "decode-2"]
        assert cluster.scaler.scale(decode=3)["started"] == []
        assert cluster.scaler.scale(decode=1)["drained"] == ["decode-2", "decode-1"]
        assert cluster.scaler.scale(decode=1)["drained"] == []
        assert cluster.scaler.scale(prefill=0)["target"] == {"prefill": 0, "decode": 1}
        await settle(cluster)

    run(scenario, prefill=1, decode=1)


def test_more_than_fits_starts_nothing_and_leaves_the_target() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.launcher.room = 12
        cluster.scaler.scale(prefill=2, decode=200)
        await cluster.sleep(2.0)
        view = cluster.service.cluster()
        assert view["target"] == {"prefill": 1, "decode": 1}
        assert sorted(states(cluster)) == ["decode-0", "prefill-0"]
        refused = view["scaling"]["refused"]
        assert len(refused) == 200
        assert refused[0]["reason"].startswith("10 of 200 workers fit, so none is started: ")
        cluster.scaler.scale_as_fits(None, 200)
        await cluster.sleep(2.0)
        assert cluster.service.books.pools.target == {"prefill": 1, "decode": 11}
        await settle(cluster)

    run(scenario, prefill=1, decode=1)


@pytest.mark.parametrize("wanted", [{"prefill": -1}, {"decode": 0}, {"prefill": 256}])
def test_bad_numbers_change_nothing(wanted: dict[str, int]) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        with pytest.raises(InvalidRequest):
            cluster.scaler.scale(**wanted)
        assert cluster.service.books.pools.target == {"prefill": 1, "decode": 1}

    run(scenario, prefill=1, decode=1)


def test_last_decode_worker_neither_leaves_nor_flips() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        with pytest.raises(PoolConflict, match="baton scale decode=2"):
            cluster.scaler.drain("decode-0")
        with pytest.raises(PoolConflict, match="baton role WORKER decode"):
            cluster.scaler.set_role("decode-0", Role.PREFILL)
        with pytest.raises(WorkerNotFound, match="there are: decode-0, prefill-0"):
            cluster.scaler.drain("decode-1")

    run(scenario, prefill=1, decode=1)


def test_nothing_is_scaled_before_the_launcher_has_spoken() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.restart_coordinator()
        with pytest.raises(NoLauncher):
            cluster.scaler.scale(decode=2)
        with pytest.raises(NoLauncher):
            cluster.scaler.drain("decode-0")
        await cluster.sleep(2.0)
        assert cluster.scaler.scale(decode=2)["started"] == ["decode-1"]
        await settle(cluster)

    run(scenario, prefill=1, decode=1)


def test_drain_waits_until_somebody_else_can_decode() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.launcher.start_s = (2.0, 2.0)
        cluster.kill("decode-1")
        await cluster.sleep(0.1)
        cluster.scaler.drain("decode-0")
        await cluster.sleep(1.0)
        assert states(cluster)["decode-0"] == "ready"
        cluster.restart("decode-1")
        await settle(cluster)
        assert states(cluster) == {"prefill-0": "ready", "decode-1": "ready"}

    run(scenario, prefill=1, decode=2)


def test_prefill_worker_keeps_its_blocks_until_the_reader_has_them() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        request = generation("a", 60)
        stream = cluster.service.submit(request)
        name = cluster.service.requests._lives["a"].prefill_worker
        assert name is not None
        holder = cluster.workers[name]
        for _ in range(200):
            await cluster.sleep(0.0005 if not len(holder.leases) else 0.0)
        assert len(holder.leases) == 1
        cluster.scaler.grace_s = 5.0
        cluster.pause("decode-0", 1.5)
        cluster.scaler.drain(name)
        await cluster.sleep(1.4)
        assert len(holder.leases) == 1
        assert not holder.loop.has_said_goodbye
        assert states(cluster)[name] == "draining"
        assert await cluster.drain(stream) == cluster.oracle(request)
        assert cluster.service.requests.replays == 0
        await settle(cluster)
        assert name not in states(cluster)

    run(scenario, prefill=2, decode=1)


def test_reader_may_tell_later_than_the_holder_leaves() -> None:
    """The reader's news that it has everything travels slowly: the holder, which knows already, is let go later."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        request = generation("a", 60)
        stream = cluster.service.submit(request)
        holder = cluster.service.requests._lives["a"].prefill_worker
        assert holder is not None
        cluster.scaler.drain(holder)
        cluster.network.hold_back("decode-0", "coordinator", 0.4)
        assert await cluster.drain(stream) == cluster.oracle(request)
        assert cluster.service.requests.replays == 0
        await settle(cluster)

    run(scenario, prefill=2, decode=1)


def test_worker_drained_past_its_grace_hands_its_streams_over() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        keep_answers_where_they_are(cluster)
        requests = [generation(str(i), 5 + i, 900) for i in range(4)]
        streams = [cluster.service.submit(request) for request in requests]
        await cluster.sleep(0.1)
        cluster.scaler.drain("decode-0")
        for request, stream in zip(requests, streams, strict=True):
            assert await cluster.drain(stream) == cluster.oracle(request)
        assert cluster.service.requests.replays > 0
        await settle(cluster)
        assert states(cluster) == {"prefill-0": "ready", "decode-1": "ready"}

    run(scenario, prefill=1, decode=2)


def test_flip_interrupts_nothing() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        requests = [generation(str(i), 30 + i, 60) for i in range(8)]
        streams = [cluster.service.submit(request) for request in requests]
        await cluster.sleep(0.01)
        cluster.scaler.set_role("prefill-0", Role.DECODE)
        cluster.scaler.set_role("decode-0", Role.PREFILL)
        for request, stream in zip(requests, streams, strict=True):
            assert await cluster.drain(stream) == cluster.oracle(request)
        assert cluster.service.requests.replays == 0
        await settle(cluster)
        assert cluster.workers["prefill-0"].loop.role == "decode"

    run(scenario, prefill=2, decode=2)


def test_flipped_worker_comes_back_in_its_new_role() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.scaler.set_role("prefill-0", Role.DECODE)
        cluster.kill("prefill-0")
        await cluster.sleep(0.1)
        cluster.restart("prefill-0")
        cluster.restart_coordinator()
        await settle(cluster)
        assert cluster.service.books.pools.target == {"prefill": 1, "decode": 2}

    run(scenario, prefill=2, decode=1)


def test_flipped_worker_keeps_its_role_when_killed() -> None:
    """Also where the launcher starts it again as what it was."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.scaler.set_role("prefill-0", Role.DECODE)
        cluster.kill("prefill-0")
        await cluster.sleep(0.1)
        order = RoleOrder(worker_id="prefill-0", role=Role.PREFILL)
        cluster.launcher.roster.on_order(order, cluster.clock.now_s())
        cluster.restart("prefill-0")
        await settle(cluster)
        assert cluster.service.books.pools.target == {"prefill": 1, "decode": 2}

    run(scenario, prefill=2, decode=1)


def test_lost_flip_is_told_again() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.network.lose_next("coordinator", "prefill-0")
        cluster.scaler.set_role("prefill-0", Role.DECODE)
        await settle(cluster)
        assert cluster.workers["prefill-0"].loop.role == "decode"

    run(scenario, prefill=2, decode=1)


def test_worker_that_dies_while_it_leaves_is_neither_lost_nor_restarted() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        request = generation("a", 20, 300)
        stream = cluster.service.submit(request)
        await cluster.sleep(0.05)
        decode_id = cluster.service.requests._lives["a"].decode_worker
        assert decode_id is not None
        keep_answers_where_they_are(cluster)
        cluster.scaler.drain(decode_id)
        cluster.kill(decode_id)
        assert await cluster.drain(stream) == cluster.oracle(request)
        assert cluster.service.cluster()["lost"] == []
        cluster.restart(decode_id)
        await settle(cluster)
        assert decode_id not in states(cluster)

    run(scenario, prefill=1, decode=2)


def test_drain_survives_the_coordinator() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.pause("decode-0", 1.0)
        cluster.scaler.drain("decode-0")
        await cluster.sleep(0.1)
        cluster.restart_coordinator()
        await settle(cluster)
        assert states(cluster) == {"prefill-0": "ready", "decode-1": "ready"}

    run(scenario, prefill=1, decode=2)


def test_refused_workers_leave_the_target_and_are_shown() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.launcher.room = 3
        cluster.scaler.scale(decode=3)
        await settle(cluster)
        view = cluster.service.cluster()
        assert view["target"] == {"prefill": 1, "decode": 1}
        assert [entry["id"] for entry in view["scaling"]["refused"]] == ["decode-1", "decode-2"]
        cluster.scaler.scale(decode=2)
        assert cluster.service.cluster()["scaling"]["refused"] == []

    run(scenario, prefill=1, decode=1)


def test_draining_worker_gets_no_work() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        long = generation("long", 40, 400)
        stream = cluster.service.submit(long)
        await cluster.sleep(0.05)
        leaving = cluster.service.requests._lives["long"].decode_worker
        assert leaving is not None
        cluster.scaler.drain(leaving)
        record = cluster.service.books.registry.get(leaving)
        assert record is not None
        assert record.state is WorkerState.DRAINING
        others = [cluster.service.submit(generation(str(i), 41)) for i in range(6)]
        used = {
            life.decode_worker
            for name, life in cluster.service.requests._lives.items()
            if name != "long"
        }
        assert used - {None} == {"decode-0", "decode-1"} - {leaving}, "None waits"
        for other in [stream, *others]:
            assert await cluster.drain(other)
        await settle(cluster)

    run(scenario, prefill=1, decode=2)


async def still_writes(cluster: Cluster) -> None:
    """The pools are one worker each, as at first, and answer."""
    assert cluster.service.books.pools.target == {"prefill": 1, "decode": 1}
    assert states(cluster) == {"prefill-0": "ready", "decode-0": "ready"}
    request = generation("late", 9)
    assert await cluster.drain(cluster.service.submit(request)) == cluster.oracle(request)


@pytest.mark.parametrize("lose", [0.0, 0.5])
def test_the_last_decode_worker_stays_when_those_after_it_are_refused(lose: float) -> None:
    """Drained while they were on their way: it leaves when others are ready, and there never were any."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.launcher.room = 2
        cluster.scaler.scale(decode=3)
        cluster.scaler.drain("decode-0")
        cluster.launcher.line.faults.lose = lose
        await cluster.sleep(2.0)
        await still_writes(cluster)
        await settle(cluster)
        cluster.kill("decode-0")
        await settle(cluster)
        assert states(cluster) == {"prefill-0": "ready", "decode-0": "ready"}

    run(scenario, prefill=1, decode=1)


@pytest.mark.parametrize("seed", range(8))
def test_it_stays_also_for_a_coordinator_that_does_not_know_what_was_ordered(seed: int) -> None:
    """Killed between the order to leave and the refusal of those that were to come."""

    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.launcher.room = 2
        cluster.scaler.scale(decode=3)
        cluster.scaler.drain("decode-0")
        await cluster.sleep(0.002 * seed)
        cluster.restart_coordinator()
        await cluster.sleep(4.0)
        await still_writes(cluster)
        cluster.kill("decode-0")
        await settle(cluster)
        assert states(cluster) == {"prefill-0": "ready", "decode-0": "ready"}

    run(scenario, prefill=1, decode=1, seed=seed)


def test_one_that_was_being_tried_stays_as_well() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.kill("decode-0")
        while states(cluster).get("decode-0") != "starting":
            await cluster.sleep(0.001)
        cluster.launcher.room = 2
        cluster.scaler.scale(decode=3)
        cluster.scaler.drain("decode-0")
        await cluster.sleep(4.0)
        assert states(cluster) == {"prefill-0": "ready", "decode-0": "ready"}
        await settle(cluster)

    run(scenario, prefill=1, decode=1)


@pytest.mark.parametrize("within_s", [None, 1.0])
def test_one_whose_machine_goes_is_started_again_where_no_other_could_be(
    within_s: float | None,
) -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.launcher.room = 2
        if within_s is None:
            cluster.scaler.evacuate(["decode-0"], 1.0)
        else:
            cluster.scaler.scale(decode=2)
            cluster.scaler.drain("decode-0", within_s)
        await cluster.sleep(2.0)
        cluster.kill("decode-0")
        await cluster.sleep(4.0)
        assert states(cluster) == {"prefill-0": "ready", "decode-0": "ready"}
        await settle(cluster)

    run(scenario, prefill=1, decode=1)

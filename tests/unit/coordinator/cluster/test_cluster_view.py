"""What an operator reads in `GET /cluster`: sizes, waits, Ray, the SLO, and what changed before somebody looked."""

from __future__ import annotations

from coordinator.cluster.changes import KEPT
from coordinator.cluster.service_api import Generation
from coordinator.planning.observations import Targets
from protocol.roles import Role
from protocol.sampling import SamplingParams
from tests.sim.cluster import Cluster, run


def texts(cluster: Cluster) -> list[str]:
    changes = cluster.service.cluster()["changes"]
    return [f"{change['subject']} {change['text']}".strip() for change in changes]


def test_each_pool_tells_what_is_wanted_and_what_is_there() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.launcher.start_s = (5.0, 5.0)
        cluster.scaler.scale(decode=3)
        await cluster.sleep(1.0)
        pools = cluster.service.cluster()["pools"]
        assert pools["decode"] == {
            "target": 3,
            "ready": 1,
            "starting": 0,
            "asleep": 0,
            "draining": 0,
            "waiting": 0,
        }
        await cluster.sleep(10.0)
        assert cluster.service.cluster()["pools"]["decode"]["ready"] == 3
        await cluster.quiet()

    run(scenario, prefill=1, decode=1)


def test_who_waits_for_what_is_told_since_when_and_until_it_has_it() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.launcher.start_s = (20.0, 20.0)
        cluster.scaler.scale(decode=2)
        await cluster.sleep(1.5)
        place = cluster.launcher.roster.get("decode-1")
        assert place is not None
        place.waits("a node with decode_slot 1")
        await cluster.sleep(6.0)
        (entry,) = cluster.service.cluster()["scaling"]["waiting"]
        assert (entry["id"], entry["role"]) == ("decode-1", "decode")
        assert entry["waits_for"] == "a node with decode_slot 1"
        assert 4.0 <= entry["for_s"] <= 6.0
        assert cluster.service.cluster()["pools"]["decode"]["waiting"] == 1
        place.sits_on("b 10.0.0.2")
        await cluster.sleep(30.0)
        view = cluster.service.cluster()
        assert view["scaling"]["waiting"] == []
        assert {w["id"]: w["node"] for w in view["workers"]}["decode-1"] == "b 10.0.0.2"
        assert "decode-1 waits for a node with decode_slot 1" in texts(cluster)
        await cluster.quiet()

    run(scenario, prefill=1, decode=1)


def test_a_launcher_that_can_do_nothing_is_told() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        await cluster.sleep(1.0)
        cluster.launcher.foreman.do(cluster.launcher.roster.go_away("Ray is away (lost)"))
        await cluster.sleep(2.0)
        assert cluster.service.cluster()["scaling"]["away"] == "Ray is away (lost)"
        cluster.launcher.foreman.do(cluster.launcher.roster.come_back())
        await cluster.sleep(2.0)
        assert cluster.service.cluster()["scaling"]["away"] == ""
        told = texts(cluster)
        assert told[-2:] == ["Ray is away (lost)", "workers can be started and stopped again"]

    run(scenario, prefill=1, decode=1)


def test_what_changed_is_kept_for_whoever_looks_later_and_bounded() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        await cluster.sleep(1.0)
        cluster.kill("decode-0")
        await cluster.until_ready()
        await cluster.sleep(2.0)
        told = texts(cluster)
        for line in ("wanted: 1 prefill, 1 decode", "prefill-0 is ready", "decode-0 is ready"):
            assert line in told
        lost = next(line for line in told if line.startswith("decode-0 was lost: "))
        assert told.index(lost) < len(told) - 1
        assert told[-1] == "decode-0 is ready"
        numbers = [change["number"] for change in cluster.service.cluster()["changes"]]
        assert numbers == sorted(set(numbers))
        for number in range(2 * KEPT):
            cluster.service._changes.add("x", f"{number}")
        assert len(cluster.service.cluster()["changes"]) == KEPT

    run(scenario, prefill=1, decode=1)


def test_the_slo_counts_what_clients_asked_and_no_probe() -> None:
    async def scenario(cluster: Cluster) -> None:
        cluster.service.policy.watch(Targets(60.0, 10.0))
        await cluster.until_ready()
        slo = cluster.service.cluster()["slo"]
        assert (slo["requests"], slo["attained"]) == (0, None)
        sampling = SamplingParams(max_tokens=5, temperature=0.0)
        stream = cluster.service.submit(Generation("a", list(range(9)), sampling))
        await cluster.drain(stream)
        left = cluster.service.submit(Generation("b", list(range(9)), sampling))
        left.cancel("its client left")
        slo = cluster.service.cluster()["slo"]
        assert (slo["requests"], slo["failed"], slo["attained"]) == (1, 0, 1.0)
        await cluster.quiet()

    run(scenario, prefill=1, decode=1)


def test_a_flip_is_told_once() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        await cluster.sleep(1.0)
        cluster.scaler.set_role("decode-1", Role.PREFILL)
        await cluster.sleep(3.0)
        assert texts(cluster).count("decode-1 is prefill now") == 1
        assert texts(cluster)[-2:] == ["wanted: 2 prefill, 1 decode", "decode-1 is prefill now"]
        await cluster.quiet()

    run(scenario, prefill=1, decode=2)

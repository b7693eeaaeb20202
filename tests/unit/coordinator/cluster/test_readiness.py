"""A cluster that drains: nothing new, and all that is here to its end."""

from __future__ import annotations

import pytest

from coordinator.cluster.service_api import Generation
from protocol.errors import Draining
from protocol.sampling import SamplingParams
from tests.sim.cluster import Cluster, run


def asked(name: str, tokens: int = 200) -> Generation:
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
    return Generation(name, [1, 2, 3], sampling, deadline_in_s=600.0)


def test_a_cluster_that_drains_takes_nothing_new_and_ends_what_it_has() -> None:
    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        cluster.service.submit(asked("before"))
        assert cluster.service.drain() == {"draining": True, "live": 1}
        assert not cluster.service.is_ready()
        with pytest.raises(Draining):
            cluster.service.submit(asked("after"))
        view = cluster.service.cluster()
        assert (view["draining"], view["ready"], view["requests"]["live"]) == (True, False, 1)
        await cluster.quiet()
        assert cluster.service.cluster()["requests"]["live"] == 0

    run(scenario, prefill=1, decode=1)

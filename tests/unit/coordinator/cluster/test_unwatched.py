"""Processes on this host that cannot be watched: that is the coordinator's own want, and no worker's end."""

from __future__ import annotations

import errno
import os

import msgspec
import pytest

from protocol.ids import host_identity
from tests.sim.cluster import Cluster, run


class Watches:
    """What the system says to whoever wants to watch a process."""

    def __init__(self, *errors: int) -> None:
        self._errors = list(errors)
        self.pids: list[int] = []

    def __call__(self, pid: int) -> int:
        self.pids.append(pid)
        number = self._errors.pop(0) if len(self._errors) > 1 else self._errors[0]
        raise OSError(number, os.strerror(number))


async def says_hello_from_here(cluster: Cluster) -> None:
    record = cluster.service.books.registry.get("decode-0")
    assert record is not None
    hello = msgspec.structs.replace(
        record.hello, worker_id="decode-9", incarnation="another", boot_id=host_identity(), pid=77
    )
    cluster.service.inbox.on_message(b"x", hello)


def test_a_worker_is_not_lost_where_descriptors_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was, at each of its starts, for as long as they were."""
    watches = Watches(errno.EMFILE)
    monkeypatch.setattr(os, "pidfd_open", watches)

    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        await says_hello_from_here(cluster)
        await cluster.sleep(1.0)
        assert cluster.service.books.registry.get("decode-9") is not None

    run(scenario, prefill=1, decode=1)
    assert len(watches.pids) > 1  # tried again


def test_a_process_that_is_gone_when_it_can_be_watched_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "pidfd_open", Watches(errno.EMFILE, errno.ESRCH))

    async def scenario(cluster: Cluster) -> None:
        await cluster.until_ready()
        await says_hello_from_here(cluster)
        assert cluster.service.books.registry.get("decode-9") is not None
        await cluster.sleep(1.0)
        assert cluster.service.books.registry.get("decode-9") is None

    run(scenario, prefill=1, decode=1)

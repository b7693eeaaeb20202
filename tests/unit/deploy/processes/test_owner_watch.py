"""A coordinator that no parent holds: it ends when its launcher is gone, whatever fails on the way."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.cluster.control_socket import Outgoing
from coordinator.cluster.registry import Registry
from deploy.processes import owner_watch
from deploy.processes.owner_watch import OwnerWatch
from tests.patience import PATIENCE_S


class FailingClock:
    """Fails at its second reading, and jumps at its fourth."""

    def __init__(self) -> None:
        self.readings = 0

    def now_s(self) -> float:
        self.readings += 1
        if self.readings == 2:
            raise RuntimeError("a bug of ours")
        return float(self.readings)


async def test_look_that_failed_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_watch, "LOOK_EVERY_S", 0.001)
    ended = asyncio.Event()
    watch = OwnerWatch(2.5, Registry(), Outgoing(lambda *_: True), FailingClock())
    watch.start(ended.set)
    await asyncio.wait_for(ended.wait(), PATIENCE_S)
    watch.close()

"""The way out to workers and launcher. Owns who the launcher is; a worker's orders are numbered in its record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.cluster.registry import WorkerRecord
    from protocol.messages.launcher import LauncherOrder
    from protocol.messages.orders import CoordinatorMessage


class Outgoing:
    """Waits for nobody: what cannot be sent is lost, and heartbeats find out."""

    def __init__(self, send: Callable[[bytes, CoordinatorMessage | LauncherOrder], bool]) -> None:
        self._send = send
        self._launcher: bytes | None = None

    def send_to(self, identity: bytes, message: CoordinatorMessage) -> bool:
        """To whoever is behind `identity`, registered or not."""
        return self._send(identity, message)

    def send_order(self, record: WorkerRecord, order: CoordinatorMessage) -> bool:
        """To a registered worker, with the next number."""
        numbered = msgspec.structs.replace(order, seq=record.next_seq())
        return self._send(record.identity, numbered)

    def launcher_is(self, identity: bytes | None) -> None:
        """The launcher spoke, or said goodbye (None)."""
        self._launcher = identity

    def tell_launcher(self, order: LauncherOrder) -> bool:
        """False when there is no launcher, or it is away."""
        return self._launcher is not None and self._send(self._launcher, order)

"""Which roads a worker offers and takes. Owns their order of preference and the reasons against each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.api.errors import ConfigError
from kvtransfer.transports.shm import ShmTransport
from kvtransfer.transports.zmq_tcp import ZmqTransport

if TYPE_CHECKING:
    from pathlib import Path

    import zmq

    from kvtransfer.transport import LocalPool, Transport

PREFERENCE = ("shm", "zmq")
"""Best first: shm copies at memory speed but needs one host; zmq works everywhere."""


def usable() -> dict[str, str | None]:
    """Every transport, and why it cannot work here (None when it can)."""
    return dict.fromkeys(PREFERENCE)


def chosen_names(choice: str) -> tuple[str, ...]:
    """The transports that `--transport` allows, best first."""
    if choice == "auto":
        return tuple(name for name, reason in usable().items() if reason is None)
    reason = usable().get(choice, "unknown transport")
    if reason is not None:
        known = ", ".join(PREFERENCE)
        raise ConfigError(f"--transport {choice}: {reason}; choose auto or one of {known}")
    return (choice,)


def make_transports(
    choice: str,
    pool: LocalPool,
    *,
    context: zmq.Context[zmq.Socket[bytes]],
    socket_path: Path,
    peer_host: str,
) -> dict[str, Transport]:
    """The chosen transports by name, best first. `socket_path` is where shm listens."""
    made: dict[str, Transport] = {}
    for name in chosen_names(choice):
        if name == "shm":
            made[name] = ShmTransport(pool, socket_path)
        else:
            made[name] = ZmqTransport(context, peer_host, pool)
    return made

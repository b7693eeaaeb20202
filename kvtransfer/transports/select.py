"""Which roads a worker offers and takes. Owns their order of preference and the reasons against each."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from engine.api.errors import ConfigError
from kvtransfer.transports.rdma import has_rdma
from kvtransfer.transports.shm import ShmTransport
from kvtransfer.transports.zmq_tcp import ZmqTransport

if TYPE_CHECKING:
    from pathlib import Path

    import zmq

    from kvtransfer.transport import LocalPool, Transport

PREFERENCE = ("shm", "nixl", "ucx", "zmq")
"""Best first. shm copies at memory speed but needs one host. nixl reads one-sidedly over RDMA, so
the source's cores do nothing; ucx reaches RDMA too. zmq works everywhere, and over plain TCP it is
faster than nixl and ucx (docs/LOG.md): `auto` takes those two only where there is an RDMA device."""
_NEED_RDMA = ("nixl", "ucx")

_PACKAGES = {
    "nixl": (("nixl_cu12", "nixl_cu13", "nixl"), "nixl-cu12"),
    "ucx": (("ucxx",), "ucxx-cu12"),
}


def usable() -> dict[str, str | None]:
    """Every transport, and why it cannot work here (None when it can)."""
    return {name: _obstacle(name) for name in PREFERENCE}


def _obstacle(name: str) -> str | None:
    if name == "shm" and not hasattr(os, "memfd_create"):
        return "needs memfd_create (Linux)"
    modules, package = _PACKAGES.get(name, ((), ""))
    if modules and not any(find_spec(module) for module in modules):
        return f"optional: pip install {package}"
    return None


def chosen_names(choice: str) -> tuple[str, ...]:
    """The transports that `--transport` allows, best first."""
    if choice == "auto":
        works = [name for name, reason in usable().items() if reason is None]
        has_device = has_rdma()
        return tuple(name for name in works if has_device or name not in _NEED_RDMA)
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
        elif name == "zmq":
            made[name] = ZmqTransport(context, peer_host, pool)
        else:  # imports an optional package, so only when it is there
            module = import_module(f"kvtransfer.transports.{name}")
            made[name] = module.TRANSPORT(context, peer_host, pool)
    return made

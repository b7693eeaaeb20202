"""Which roads a worker offers and takes. Owns their order of preference and the reasons against each."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from kvtransfer.transports.cuda_ipc import CudaTransport
from kvtransfer.transports.rdma import has_rdma
from kvtransfer.transports.shm import ShmTransport
from kvtransfer.transports.zmq_tcp import ZmqTransport
from protocol.addresses import is_loopback, tcp_endpoint
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from kvtransfer.transport import LocalPool, Transport
    from protocol.channels import Channels

PREFERENCE = ("cuda", "shm", "nixl", "ucx", "zmq")
"""Best first. cuda copies from GPU memory to GPU memory of one host. shm copies at memory speed but needs one host. nixl reads one-sidedly over RDMA, so
the source's cores do nothing; ucx reaches RDMA too. zmq works everywhere, and over plain TCP it is
faster than nixl and ucx (docs/LOG.md): `auto` takes those two only where there is an RDMA device."""
LOOPBACK = "127.0.0.1"
_NEED_RDMA = ("nixl", "ucx")
_BARE = ("nixl", "ucx")
"""Neither encrypts nor authenticates what it carries."""
REGISTERING = frozenset({"nixl", "ucx"})
"""These register a pool's pages with the network; they cannot go and come."""
TRUSTED = "trusted"
"""The value of --kv-network by which an operator vouches for everybody on the network."""

ROADS_OF = {"host": ("shm", "nixl", "ucx", "zmq"), "cuda": ("cuda", "zmq")}
"""What serves each kind of memory; blocks on a GPU go over zmq by way of pinned memory."""

_PACKAGES = {
    "nixl": (("nixl_cu12", "nixl_cu13", "nixl"), "nixl-cu12"),
    "ucx": (("ucxx",), "ucxx-cu12"),
}


def usable() -> dict[str, str | None]:
    """Every transport, and why it cannot work here (None when it can)."""
    return {name: _obstacle(name) for name in PREFERENCE}


def _obstacle(name: str) -> str | None:
    if name == "cuda" and not Path("/dev/nvidiactl").exists():
        return "for blocks on a GPU (--device cuda): there is no NVIDIA GPU here"
    if name == "shm" and not hasattr(os, "memfd_create"):
        return "needs memfd_create (Linux)"
    modules, package = _PACKAGES.get(name, ((), ""))
    if modules and not any(find_spec(module) for module in modules):
        return f"optional: pip install {package}"
    return None


def chosen_names(
    choice: str, peer_host: str = LOOPBACK, network: str = "", kind: str = "host"
) -> tuple[str, ...]:
    """The transports that `--transport` and `--kv-network` allow at `peer_host` for memory of that kind, best first."""
    may_be_bare = is_loopback(peer_host) or network == TRUSTED
    if choice == "auto":
        works = [n for n, reason in usable().items() if reason is None and n in ROADS_OF[kind]]
        has_device = has_rdma() and may_be_bare
        return tuple(name for name in works if has_device or name not in _NEED_RDMA)
    if choice in _BARE and not may_be_bare:
        raise ConfigError(
            f"--transport {choice}: it neither encrypts nor authenticates, and {peer_host} is reached "
            "from other hosts; use zmq, or say --kv-network trusted if only this cluster is on that network"
        )
    reason = usable().get(choice, "unknown transport")
    if reason is not None:
        known = ", ".join(PREFERENCE)
        raise ConfigError(f"--transport {choice}: {reason}; choose auto or one of {known}")
    if choice not in ROADS_OF[kind]:
        roads = ", ".join(ROADS_OF[kind])
        raise ConfigError(
            f"--transport {choice}: it does not reach blocks in {kind} memory; choose auto or one of {roads}"
        )
    return (choice,)


def make_transports(
    choice: str,
    pool: LocalPool,
    *,
    channels: Channels,
    socket_path: Path,
    peer_host: str | None,
    network: str = "",
) -> dict[str, Transport]:
    """The chosen transports by name, best first. `socket_path` is where shm listens, and zmq beside it where there is no
    `peer_host` because all are on this one: nobody else's processes reach that, nor take a worker's descriptors. On a trusted
    network blocks go unencrypted; what nixl and ucx agree on beforehand is encrypted there too."""
    made: dict[str, Transport] = {}
    path = socket_path.with_suffix(".zmq")
    zmq_at = f"ipc://{path}" if peer_host is None else tcp_endpoint(peer_host)
    host = peer_host or LOOPBACK
    for name in chosen_names(choice, host, network, pool.memory.kind):
        if name == "cuda":
            made[name] = CudaTransport(pool, socket_path.with_suffix(".cuda"))
        elif name == "shm":
            made[name] = ShmTransport(pool, socket_path)
        elif name == "zmq":
            ways = channels.unencrypted() if network == TRUSTED else channels
            made[name] = ZmqTransport(ways, zmq_at, pool)
        else:  # imports an optional package, so only when it is there
            module = import_module(f"kvtransfer.transports.{name}")
            made[name] = module.TRANSPORT(channels, host, pool)
    return made

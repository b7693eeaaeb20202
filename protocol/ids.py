"""Names of things. Owns how identifiers are made; identifiers mean nothing by themselves.

Requests, incarnations and leases get 128 random bits made by the server: a client's own id is only
a label, and a lease id is a capability that cannot be guessed.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Protocol

MAX_WORKERS = 256
"""Workers of both pools together."""


def worker_name(key: str, role: str, index: int) -> str:
    """`decode-0`, or of a fleet's model `key` `tiny.decode-0`: names are unique across models."""
    return f"{key}.{role}-{index}" if key else f"{role}-{index}"


def key_of(worker_id: str) -> str:
    """The key of a worker's model, "" where there is only one."""
    return worker_id.rpartition(".")[0]


def new_request_id() -> str:
    """128 random bits in hex."""
    return secrets.token_hex(16)


class Ids(Protocol):
    """Where a worker's names come from: passed in, as the clock is."""

    def new_incarnation(self) -> str:
        """Made once per worker start (and after a fence): tells a restarted worker from its past."""
        ...

    def new_lease_id(self) -> str:
        """Who knows it may read the leased blocks."""
        ...


class RandomIds:
    """Satisfies Ids: 128 random bits in hex."""

    def new_incarnation(self) -> str:
        """See Ids."""
        return secrets.token_hex(16)

    def new_lease_id(self) -> str:
        """See Ids."""
        return secrets.token_hex(16)


def files_identity() -> str:
    """Boot id and mount namespace: equal for two processes only when a path means the same to both."""
    return f"{boot_id()}/{Path('/proc/self/ns/mnt').readlink()}"


def boot_id() -> str:
    """Of this run of the kernel: equal exactly where monotonic instants can be compared."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def host_identity() -> str:
    """Boot id and pid namespace: equal for two processes exactly when a pid means the same to both."""
    return f"{boot_id()}/{Path('/proc/self/ns/pid').readlink()}"

"""Names of things. Owns how identifiers are made; identifiers mean nothing by themselves.

Requests, incarnations and leases get 128 random bits made by the server: a client's own id is only
a label, and a lease id is a capability that cannot be guessed.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import NewType

RequestId = NewType("RequestId", str)
WorkerId = NewType("WorkerId", str)
Incarnation = NewType("Incarnation", str)
LeaseId = NewType("LeaseId", str)
MAX_WORKERS = 256
"""Workers of both pools together."""


def new_request_id() -> RequestId:
    """128 random bits in hex."""
    return RequestId(secrets.token_hex(16))


def new_incarnation() -> Incarnation:
    """Made once per worker start (and after a fence): tells a restarted worker from its past."""
    return Incarnation(secrets.token_hex(16))


def new_lease_id() -> LeaseId:
    """128 random bits in hex; who knows it may read the leased blocks."""
    return LeaseId(secrets.token_hex(16))


def files_identity() -> str:
    """Boot id and mount namespace: equal for two processes only when a path means the same to both."""
    return f"{_boot_id()}/{Path('/proc/self/ns/mnt').readlink()}"


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def host_identity() -> str:
    """Boot id and pid namespace: equal for two processes exactly when a pid means the same to both."""
    return f"{_boot_id()}/{Path('/proc/self/ns/pid').readlink()}"

"""Whether this host has an RDMA device. Owns the place where the kernel lists them."""

from __future__ import annotations

from pathlib import Path

DEVICES = Path("/sys/class/infiniband")


def has_rdma() -> bool:
    """Whether any InfiniBand or RoCE device is there."""
    return DEVICES.is_dir() and any(DEVICES.iterdir())

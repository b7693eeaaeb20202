"""Which cores each worker runs on. Owns the split of a host's cores; pinning itself happens in the worker."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from deploy.config.values import parse_cores
from protocol.errors import ConfigError

CPU_DIRECTORY = Path("/sys/devices/system/cpu")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Share:
    """One worker's part of the host; `cores` empty means not pinned. `lent_cores` are others' that may help it."""

    cores: tuple[int, ...]
    num_threads: int
    lent_cores: tuple[int, ...] = ()


def allowed_cores(directory: Path = CPU_DIRECTORY) -> tuple[int, ...]:
    """Cores this process may use, siblings of one physical core and one package side by side."""
    cores = os.sched_getaffinity(0)
    return tuple(sorted(cores, key=lambda core: (*_place(directory, core), core)))


def _place(directory: Path, core: int) -> tuple[int, int]:
    topology = directory / f"cpu{core}" / "topology"
    package, physical = topology / "physical_package_id", topology / "core_id"
    if not package.is_file() or not physical.is_file():
        return 0, core
    return int(package.read_text(encoding="ascii")), int(physical.read_text(encoding="ascii"))


def quota_cores(path: Path = CPU_QUOTA) -> float | None:
    """How many cores' worth of time a cgroup grants, None without a limit."""
    if not path.is_file():
        return None
    quota, _, period = path.read_text(encoding="ascii").strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def share_cores(
    affinity: str,
    num_workers: int,
    allowed: tuple[int, ...],
    quota: float | None = None,
) -> list[Share]:
    """A share for each worker, in order.

    Under a quota smaller than the allowed cores, `auto` pins nothing: the cores belong to others
    too, and only the thread counts follow the quota.
    """
    if affinity == "auto" and (quota is None or quota >= len(allowed)):
        return _split(allowed, num_workers)
    if affinity in ("auto", "none"):
        cores = len(allowed) if quota is None else max(1, min(len(allowed), int(quota)))
        return [Share((), max(1, cores // num_workers))] * num_workers
    groups = [parse_cores(group) for group in affinity.split(";")]
    absent = sorted({core for group in groups for core in group} - set(allowed))
    if absent:
        raise ConfigError(
            f"--cpu-affinity: core {absent[0]} is not available here; choose from {_spell(allowed)}"
        )
    if len(groups) == 1:
        return _split(groups[0], num_workers)
    if len(groups) != num_workers:
        raise ConfigError(
            f"--cpu-affinity: {len(groups)} lists for {num_workers} workers; give one list, or one each"
        )
    return [Share(group, len(group)) for group in groups]


def lend_cores(shares: list[Share]) -> list[Share]:
    """Each with the cores of all others, its neighbours' first; unless one core is in two shares, or some have none."""
    taken = [core for share in shares for core in share.cores]
    if len(set(taken)) < len(taken) or not all(share.cores for share in shares):
        return shares
    lent = []
    for index, share in enumerate(shares):
        others = [*shares[index + 1 :], *shares[:index]]
        lent.append(
            replace(share, lent_cores=tuple(core for other in others for core in other.cores))
        )
    return lent


def _split(cores: tuple[int, ...], num_workers: int) -> list[Share]:
    """Contiguous parts; with fewer cores than workers, a core is shared by several."""
    if len(cores) < num_workers:
        return [Share((cores[worker % len(cores)],), 1) for worker in range(num_workers)]
    bounds = [worker * len(cores) // num_workers for worker in range(num_workers + 1)]
    return [Share(cores[start:end], end - start) for start, end in pairwise(bounds)]


def _spell(cores: tuple[int, ...]) -> str:
    return ",".join(str(core) for core in sorted(cores))

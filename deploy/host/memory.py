"""How much of a host's memory a worker's KV pool may take.

Must not know what the bytes are for; `deploy.launch.plan` turns them into blocks.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.config.values import GIB, KIB, MIB, format_bytes
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

KV_SHARE = 0.10
"""Default share of available memory that all KV pools of a host take together."""
KV_MIN_BYTES, KV_MAX_BYTES = 256 * MIB, 4 * GIB
"""Bounds of one worker's default pool."""
KV_LIMIT = 0.80
"""No flag may claim more than this share of what is available at start."""
SETTLE_S = 15.0
"""A worker started less long ago may not have taken its KV pool yet."""
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")
"""Names in a cgroup's folder, of both versions: its limit, what is used of it, and what of that is cache that can go."""
PROCESS_BYTES = 384 * MIB
"""What a worker takes beside its pool, the weights and its steps' arrays (engine.cpu.step_sizes): interpreter, libraries,
and what else it keeps (190 to 300 MiB of SmolLM2-135M's workers)."""


def available_bytes(
    meminfo: Path = Path("/proc/meminfo"),
    cgroup: Path = Path("/sys/fs/cgroup"),
    own: Path = Path("/proc/self/cgroup"),
) -> int:
    """Memory that can be taken now without swapping: the host's, or less where a cgroup that this process is in, or one
    around it, says so."""
    match = re.search(
        r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="ascii"), re.MULTILINE
    )
    if match is None:
        raise ConfigError(f"{meminfo} has no MemAvailable line: set --kv-cache-memory yourself")
    host = int(match[1]) * KIB
    left = [_left_in(folder, names) for folder, names in _groups(cgroup, own)]
    return max(0, min([host, *(bytes_ for bytes_ in left if bytes_ is not None)]))


def _groups(cgroup: Path, own: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Folders of the cgroups that bound this process's memory, in both versions' layouts, with the names used there."""
    yield cgroup, V2
    for line in own.read_text(encoding="utf-8").splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        is_v1 = "memory" in controllers.split(",")
        if controllers and not is_v1:
            continue
        root = cgroup / "memory" if is_v1 else cgroup
        folder = root / path.lstrip("/")
        while folder.is_relative_to(root):
            yield folder, V1 if is_v1 else V2
            folder = folder.parent


def _left_in(folder: Path, names: tuple[str, str, str]) -> int | None:
    """What a cgroup has left, files that it caches and does not use being none of what is taken."""
    limit, used = _read_limit(folder / names[0]), _read_limit(folder / names[1])
    if limit is None or used is None:
        return None
    stat = folder / "memory.stat"
    text = stat.read_text(encoding="ascii") if stat.is_file() else ""
    cached = re.search(rf"^{names[2]} (\d+)$", text, re.MULTILINE)
    return limit - used + (int(cached[1]) if cached else 0)


def _read_limit(path: Path) -> int | None:
    if not path.is_file():
        return None
    text = path.read_text(encoding="ascii").strip()
    return int(text) if text.isdigit() else None


def default_kv_bytes(available: int, num_workers: int) -> int:
    """One worker's pool when no flag says otherwise: an even part of `KV_SHARE`, within bounds."""
    return int(min(KV_MAX_BYTES, max(KV_MIN_BYTES, available * KV_SHARE / max(1, num_workers))))


def check_fits(
    kv_bytes: int, num_workers: int, available: int, kept_bytes: int = 0, step_bytes: int = 0
) -> None:
    """Raise ConfigError when the pools of all workers together, the arrays of their largest steps (`step_bytes` each), and
    what stores keep, cannot be had."""
    if (kv_bytes + step_bytes) * num_workers + kept_bytes > available * KV_LIMIT:
        steps = f" (and {format_bytes(step_bytes)} for its steps)" if step_bytes else ""
        stores = f" and {format_bytes(kept_bytes)} of --kv-store" if kept_bytes else ""
        raise ConfigError(
            f"--kv-cache-memory: {num_workers} workers x {format_bytes(kv_bytes)}{steps}{stores} do not fit in "
            f"{KV_LIMIT:.0%} of the {format_bytes(available)} now available; "
            "give a smaller size or fewer workers (--pd)"
            + (", or a smaller --max-num-batched-tokens" if step_bytes else "")
        )


def check_one_more(
    kv_bytes: int, starting: Collection[int], available: int, step_bytes: int = 0
) -> None:
    """Raise ConfigError when one worker more would not fit beside those that have not taken their pools yet (`starting`).
    `step_bytes`: of each worker's largest step."""
    process_bytes = PROCESS_BYTES + step_bytes
    needed = kv_bytes + sum(starting) + process_bytes * (1 + len(starting))
    if needed > available * KV_LIMIT:
        beside = f" beside {len(starting)} that start now" if starting else ""
        raise ConfigError(
            f"a KV pool of {format_bytes(kv_bytes)} and {format_bytes(process_bytes)} for its process{beside} do not "
            f"fit in {KV_LIMIT:.0%} of the {format_bytes(available)} now available; free memory, or serve with a "
            "smaller --kv-cache-memory"
        )

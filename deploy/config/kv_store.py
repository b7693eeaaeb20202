"""`--kv-store`: how large a store is and where its disk tier lies. Owns its spelling; pure."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.config.values import GIB, MIB, parse_bytes

NAMES = ("dram", "disk", "path")


@dataclass(frozen=True)
class KvStore:
    """Of each store. Without `disk_bytes` there is no disk tier; several stores each have a folder of their own in `path`."""

    dram_bytes: int
    disk_bytes: int = 0
    path: str = ""

    def __str__(self) -> str:
        parts = [f"dram={_spell(self.dram_bytes)}"]
        if self.disk_bytes:
            parts += [f"disk={_spell(self.disk_bytes)}", f"path={self.path}"]
        return ",".join(parts)


def _spell(size: int) -> str:
    """As it is read again, to the byte."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB")):
        if size % unit == 0:
            return f"{size // unit}{name}"
    return str(size)


def parse_kv_store(text: str) -> KvStore:
    """`dram=2GiB,disk=20GiB,path=/var/lib/baton`; ValueError says what to write."""
    given: dict[str, str] = {}
    for part in text.strip().split(","):
        name, equals, value = part.strip().partition("=")
        if not equals or name not in NAMES or not value:
            raise ValueError(
                f"{part!r} is not understood: write dram=2GiB, or dram=2GiB,disk=20GiB,path=/var/lib/baton"
            )
        if name in given:
            raise ValueError(f"{name} is given twice")
        given[name] = value
    if "dram" not in given:
        raise ValueError("dram= is missing: what is read from disk passes through memory")
    if ("disk" in given) != ("path" in given):
        raise ValueError("disk= and path= belong together: how much of the disk, and where")
    disk = parse_bytes(given["disk"]) if "disk" in given else 0
    return KvStore(parse_bytes(given["dram"]), disk, given.get("path", ""))

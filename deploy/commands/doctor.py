"""`baton doctor`: what this machine offers, and what to do about what it lacks. Owns the checks."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table

from deploy.commands.serve import claim_port
from deploy.config.topology import cache_directory
from deploy.config.values import GIB, format_bytes
from deploy.host.affinity import allowed_cores, quota_cores
from deploy.host.memory import available_bytes
from deploy.host.model_source import resolve_dtype
from kvtransfer.transports.select import ROADS_OF, chosen_names, usable
from kvtransfer.transports.trial import round_trip_s
from protocol.errors import ConfigError, TransferError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOT_BY_DEFAULT = "; no RDMA device, so auto leaves it out (--transport {name} takes it)"
_MIN_FILES = 1024


@dataclass(frozen=True)
class Check:
    """One fact. `bad` means that serving will not work; `weak`, that it will be slower or smaller."""

    name: str
    state: Literal["good", "weak", "bad"]
    detail: str


def show_checks(port: int) -> int:
    """Print all; exit status 1 when one is bad."""
    checks = list(all_checks(port))
    marks = {"good": "[green]✓[/green]", "weak": "[yellow]![/yellow]", "bad": "[red]✗[/red]"}
    table = Table.grid(padding=(0, 2))
    for check in checks:
        table.add_row(marks[check.state], check.name, check.detail)
    Console(highlight=False).print(table)
    return 1 if any(check.state == "bad" for check in checks) else 0


def all_checks(port: int) -> Iterator[Check]:
    """Every check, in the order of a start."""
    plain: tuple[Callable[[], Check], ...] = (python, torch, compiler, cores, memory, memfd, files)
    for check in plain:
        yield check()
    yield free_port(port)
    yield from transports()
    yield ray()
    yield cache()


def python() -> Check:
    """Version and platform."""
    return Check("python", "good", f"{platform.python_version()} on {platform.machine()}")


def torch() -> Check:
    """Installed, without importing it."""
    try:
        return Check(
            "torch", "good", f"{version('torch')}; --dtype auto is {resolve_dtype('auto')}"
        )
    except PackageNotFoundError:
        return Check("torch", "bad", "not installed; run make install")


def compiler() -> Check:
    """A C compiler builds the attention kernel; without one the torch path is used."""
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found:
        return Check("compiler", "good", found)
    return Check("compiler", "weak", "no cc, gcc or clang: attention takes the slower torch path")


def cores() -> Check:
    """Cores and a cgroup's quota."""
    count, quota = len(allowed_cores()), quota_cores()
    limit = "" if quota is None else f", limited to {quota:g} by a cgroup"
    return Check("cores", "good" if count > 1 else "weak", f"{count}{limit}")


def memory() -> Check:
    """What can be taken now."""
    size = available_bytes()
    return Check("memory", "good" if size >= 2 * GIB else "weak", f"{format_bytes(size)} available")


def memfd() -> Check:
    """The shm transport hands anonymous memory from process to process."""
    try:
        descriptor = os.memfd_create("baton-doctor", os.MFD_ALLOW_SEALING)
    except (OSError, AttributeError) as error:
        return Check("memfd", "weak", f"not usable ({error}): blocks will travel by zmq")
    os.close(descriptor)
    return Check("memfd", "good", "usable")


def files() -> Check:
    """How many descriptors a process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= _MIN_FILES:
        return Check("descriptors", "good", f"{soft}")
    return Check("descriptors", "weak", f"{soft}: raise it with ulimit -n 65536")


def free_port(port: int) -> Check:
    """Nobody else listens there."""
    try:
        claim_port("127.0.0.1", port)
    except ConfigError as error:
        return Check("port", "weak", str(error))
    return Check("port", "good", f"{port} is free")


def transports() -> Iterator[Check]:
    """Each transport: whether a block gets there and back here, whether `auto` takes it, or why not."""
    by_default = chosen_names("auto")
    with tempfile.TemporaryDirectory() as directory:
        for name, reason in usable().items():
            if reason is not None:
                yield Check(f"transport {name}", "weak", reason)
                continue
            if name not in ROADS_OF["host"]:
                yield Check(
                    f"transport {name}", "good", "for blocks on a GPU: --device cuda takes it"
                )
                continue
            try:
                seconds = round_trip_s(name, Path(directory))
            except TransferError as error:
                yield Check(f"transport {name}", "weak", f"does not work here: {error}")
                continue
            remark = "" if name in by_default else NOT_BY_DEFAULT.format(name=name)
            yield Check(
                f"transport {name}", "good", f"works: a block in {seconds * 1e3:.1f} ms{remark}"
            )


def ray() -> Check:
    """Installed, without importing it: an extra that only --launcher ray needs."""
    try:
        return Check("ray", "good", f"{version('ray')}: --launcher ray is there")
    except PackageNotFoundError:
        return Check("ray", "good", "not installed; --launcher ray: pip install 'baton-serve[ray]'")


def cache() -> Check:
    """Where prepared models are, and what they take."""
    directory = cache_directory()
    if not directory.is_dir():
        return Check("model cache", "good", f"{directory} (empty)")
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    free = shutil.disk_usage(directory).free
    state: Literal["good", "weak"] = "good" if free > GIB else "weak"
    return Check(
        "model cache", state, f"{directory}: {format_bytes(size)}, {format_bytes(free)} free"
    )

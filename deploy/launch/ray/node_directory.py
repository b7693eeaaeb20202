"""A cluster's private directory on one node: specs, keepers and their sockets. Owns its names, and who may be kept.

<tmp>/baton-ray-<launch>/                    mode 0700
    prefill-0.7.keep .sock .lock .log        one keeper: process, generation
    prefill-0.7.json  prefill-0.7.run/       what its engine is told, and where it has its sockets
    control.sock                             the coordinator, where all are on one machine
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

import msgspec

from protocol.clock import wall_time_s
from protocol.errors import ConfigError

PREFIX = "baton-ray-"
CONTROL_NAME = "control.sock"
OLD_S = 120.0


def node_directory(launch: str) -> Path:
    """Where this user's processes of that launch are on this node; made if it is not there."""
    directory = Path(tempfile.gettempdir()) / f"{PREFIX}{launch}"
    if len(str(directory)) > 60:  # a unix socket's path has 107 bytes
        directory = Path("/tmp") / f"{PREFIX}{launch}"
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.stat(follow_symlinks=False)
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ConfigError(
            f"{directory} belongs to somebody else, or others may enter it; remove it"
        )
    return directory


def write_private(path: Path, data: bytes) -> None:
    """For nobody but this user, and never half: specs hold keys."""
    draft = path.with_suffix(path.suffix + ".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    draft.replace(path)


def write_record(path: Path, record: msgspec.Struct) -> None:
    """As JSON."""
    write_private(path, msgspec.json.encode(record))


def keepers(directory: Path, name: str) -> list[Path]:
    """Order files of the keepers of a process, newest first."""
    found = [path for path in directory.glob(f"{name}.*.keep") if path.suffixes[-2][1:].isdigit()]
    return sorted(found, key=lambda path: int(path.suffixes[-2][1:]), reverse=True)


def remove_keeper(order_file: Path) -> None:
    """All files of one keeper, and the directory after the last one."""
    shutil.rmtree(order_file.with_suffix(".run"), ignore_errors=True)
    for path in order_file.parent.glob(f"{order_file.stem}.*"):
        path.unlink(missing_ok=True)
    if not any(path.name != CONTROL_NAME for path in order_file.parent.iterdir()):
        shutil.rmtree(order_file.parent, ignore_errors=True)


def remove_dead_keeper(order_file: Path) -> None:
    """What a keeper left that was killed."""
    try:
        with order_file.with_suffix(".lock").open("r+", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass
    except OSError:
        return
    remove_keeper(order_file)


def may_keep(keeper: tuple[str, str], seat: tuple[str, str]) -> bool:
    """Whether a seat takes over a process that runs already; both are (node, session of Ray).

    On its own node of course: only the seat was lost. After Ray itself began anew, all of it. But when
    another node was lost and Ray put the seat here, the process belongs to that node; it may be unreachable
    for others, and the new start replaces it.
    """
    return keeper[1] != seat[1] or keeper[0] == seat[0]


def reap(root: Path, keep: str) -> None:
    """Remove directories of launches that are over: no lock is held, and nothing happened for minutes."""
    for directory in root.glob(PREFIX + "*"):
        if directory.name != PREFIX + keep and _is_over(directory):
            shutil.rmtree(directory, ignore_errors=True)


def _is_over(directory: Path) -> bool:
    try:
        status = directory.stat(follow_symlinks=False)
        if status.st_uid != os.getuid() or wall_time_s() - status.st_mtime < OLD_S:
            return False
        for path in directory.glob("*.lock"):
            with path.open("r+", encoding="ascii") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

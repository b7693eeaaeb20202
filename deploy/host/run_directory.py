"""The launcher's private directory: sockets, specs and its lock. Owns making it, removing it, and
removing what launchers that were killed left behind.

    <tmp>/baton-run-XXXX/        mode 0700
        launcher.lock            flock held while the launcher lives
        control.sock  *.json     endpoints and specs, mode 0600
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.clock import wall_time_s

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "baton-run-"
LOCK_NAME = "launcher.lock"
MAX_PATH = 70
"""A unix socket's path has 107 bytes; this leaves room for the names inside."""
_YOUNG_S = 60.0


def _root() -> Path:
    chosen = Path(tempfile.gettempdir())
    return chosen if len(str(chosen)) + len(PREFIX) + 8 <= MAX_PATH else Path("/tmp")


@contextmanager
def run_directory(root: Path | None = None) -> Iterator[Path]:
    """A fresh directory, gone at exit; first the remains of dead launchers are removed."""
    root = root or _root()
    reap(root)
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
    try:
        with (directory / LOCK_NAME).open("w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def reap(root: Path) -> list[Path]:
    """Remove this user's run directories whose launcher is gone; what was removed."""
    removed = []
    for directory in root.glob(PREFIX + "*"):
        if _is_dead(directory):
            shutil.rmtree(directory, ignore_errors=True)
            removed.append(directory)
    return removed


def _is_dead(directory: Path) -> bool:
    """Ours, and its lock is free. Without a lock file it may be one that is being made just now."""
    try:
        status = directory.stat(follow_symlinks=False)
        if status.st_uid != os.getuid() or directory.is_symlink():
            return False
        with (directory / LOCK_NAME).open("r+", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock.read(1) != "" or _is_old(directory)
    except FileNotFoundError:
        return _is_old(directory)
    except OSError:
        return False


def _is_old(directory: Path) -> bool:
    return directory.exists() and wall_time_s() - directory.stat().st_mtime > _YOUNG_S

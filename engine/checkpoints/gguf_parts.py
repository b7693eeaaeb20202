"""A GGUF model in several files. Owns how they are named; reads nothing.

NAME-00001-of-00003.gguf   keys, and perhaps tensors
NAME-00002-of-00003.gguf   tensors, and which part of how many it is
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MAX_PARTS = 10_000
_NAME = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")


def part_paths(path: Path) -> list[Path]:
    """All files of the model that `path` is a part of, by their names; itself alone when it is whole."""
    match = _NAME.fullmatch(path.name)
    count = int(match[3]) if match else 1
    if match is None or not 1 < count <= MAX_PARTS:
        return [path]
    return [
        path.with_name(f"{match[1]}-{part:05}-of-{match[3]}.gguf") for part in range(1, count + 1)
    ]

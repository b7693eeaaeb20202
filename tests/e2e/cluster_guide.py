"""The lines of docs/cluster.md that a test runs as they are: code blocks under a comment `run: NAME`."""

from __future__ import annotations

import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "cluster.md"
BLOCK = re.compile(r"^<!-- run: ([\w-]+) -->\n```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> dict[str, list[str]]:
    """Commands by the name of their block, in the order of the guide."""
    text = GUIDE.read_text(encoding="utf-8")
    return {name: body.strip().splitlines() for name, body in BLOCK.findall(text)}

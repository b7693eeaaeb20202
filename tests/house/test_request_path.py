"""One request, file by file: the list in docs/architecture.md is true, and as short as it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "architecture.md"
MAX_FILES, MAX_RETURNS = 35, 20
STEP = re.compile(r"^\d+\. (↩ )?`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", re.MULTILINE)


class Step(NamedTuple):
    """One place that a reader goes to. `is_marked`: the list says that it was open before."""

    is_marked: bool
    path: str
    names: tuple[str, ...]


def steps(heading: str) -> list[Step]:
    """The list below a heading."""
    text = DOCUMENT.read_text(encoding="utf-8").split(f"{heading}\n", 1)[1]
    section = re.split(r"^#{2,3} ", text, maxsplit=1, flags=re.MULTILINE)[0]
    return [
        Step(bool(mark), path, tuple(re.findall(r"\w+", names)))
        for mark, path, names in STEP.findall(section)
    ]


FIRST = steps("## One request, file by file")
KV = steps("### Meanwhile: the way of the KV, to the second token")


def defined(path: str) -> set[str]:
    """Every function and class of a file, methods included."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_every_step_is_read() -> None:
    assert (len(FIRST), len(KV)) == (50, 13)


def test_every_function_named_on_the_way_exists() -> None:
    missing = {
        f"{step.path}: {name}"
        for step in FIRST + KV
        for name in step.names
        if name not in defined(step.path)
    }
    assert missing == set()


def test_returns_are_marked_as_such() -> None:
    seen: set[str] = set()
    for step in FIRST:
        assert step.is_marked == (step.path in seen), step
        seen.add(step.path)


def test_the_way_to_the_first_token_is_short() -> None:
    files, returns = len({step.path for step in FIRST}), sum(step.is_marked for step in FIRST)
    assert (files <= MAX_FILES, returns <= MAX_RETURNS) == (True, True)
    assert f"{files} files, {returns} returns" in DOCUMENT.read_text(encoding="utf-8")


def test_the_way_of_the_kv_adds_what_it_says() -> None:
    more = {step.path for step in KV} - {step.path for step in FIRST}
    assert f"{len(more)} files more" in DOCUMENT.read_text(encoding="utf-8")

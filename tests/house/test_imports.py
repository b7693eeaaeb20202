"""The house drawn from its imports, those for types included: no circle, and nothing imports upwards."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

from tests.house.trees import parsed

pytestmark = pytest.mark.xdist_group("trees")

ROOT = Path(__file__).parents[2]
FLOORS = (
    ("protocol",),
    ("engine",),
    ("kvtransfer",),
    ("prefill", "decode"),
    ("worker", "coordinator", "launching"),
    ("simulation",),
    ("deploy",),
    ("benchmarks",),
)
"""From the ground up. What stands on one floor does not know each other."""
KNOWN_CIRCLES: set[frozenset[str]] = set()
"""Still to be cut: this list only gets shorter, and must be exact."""


CHANCE_AND_TIME = {"time", "random", "uuid", "secrets"}
READERS = {"protocol.clock", "protocol.ids", "protocol.randomness"}
"""Who may import those; everybody else is given a clock, ids or a source of seeds. Benchmarks measure."""


def modules() -> dict[str, Path]:
    found = {}
    for package in (name for floor in FLOORS for name in floor):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST, known: set[str]) -> set[str]:
    """Files of ours that a file names in any import, wherever it stands."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inner & known) or {node.module}
    return names & known


@functools.cache
def house() -> dict[str, set[str]]:
    files = modules()
    known = set(files)
    return {name: imported(parsed(path), known) - {name} for name, path in files.items()}


def circles(arrows: dict[str, set[str]]) -> set[frozenset[str]]:
    """Strongly connected components of more than one file or folder (Tarjan)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: set[frozenset[str]] = set()

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(arrows[name]):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            members = set()
            while name not in members:
                members.add(stack.pop())
            if len(members) > 1:
                found.add(frozenset(members))

    for name in sorted(arrows):
        if name not in order:
            visit(name)
    return found


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(house()) == KNOWN_CIRCLES


def folders() -> dict[str, set[str]]:
    """The same drawing from farther away: which folder needs which."""
    folder_of = {name: path.parent.relative_to(ROOT).as_posix() for name, path in modules().items()}
    arrows: dict[str, set[str]] = {folder: set() for folder in folder_of.values()}
    for name, others in house().items():
        arrows[folder_of[name]] |= {folder_of[other] for other in others} - {folder_of[name]}
    return arrows


def test_no_folders_import_each_other_in_a_circle() -> None:
    """A folder and the folders in it count apart: either the outer one needs the inner, or the inner the outer."""
    assert circles(folders()) == set()


def test_nothing_imports_upwards_or_across() -> None:
    floor_of = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    wrong = []
    for name, others in house().items():
        here = name.partition(".")[0]
        for other in others:
            there = other.partition(".")[0]
            if there != here and floor_of[there] >= floor_of[here]:
                wrong.append(f"{name} -> {other}")
    assert wrong == []


def test_time_and_chance_are_read_in_their_own_files_alone() -> None:
    found = {
        name
        for name, path in modules().items()
        if not name.startswith("benchmarks") and imported(parsed(path), CHANCE_AND_TIME)
    }
    assert found == READERS


FINE_CLOCKS = {
    "kvtransfer.transports.exchange": "waits of a socket",
    "kvtransfer.transports.nixl": "waits of a device",
    "kvtransfer.transports.trial": "how fast a road is",
    "kvtransfer.transports.ucx": "waits of a device",
    "kvtransfer.transports.ucx_worker": "waits of a device",
    "kvtransfer.transports.zmq_tcp": "waits of a socket",
}
"""Who reads the finest clock without being given it, and why: waits for what lives by real time, and figures."""


def test_the_fine_clock_is_read_for_waits_and_figures_only() -> None:
    found = {
        name
        for name, path in modules().items()
        if name.split(".")[0] != "benchmarks"
        and name != "protocol.clock"
        and "precise_s" in path.read_text(encoding="utf-8")
    }
    assert found == FINE_CLOCKS.keys()


@pytest.mark.every_value
@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import protocol.wire", {"protocol.wire"}),
        ("from protocol import wire", {"protocol.wire"}),
        ("from protocol.wire import encode", {"protocol.wire"}),
        ("if TYPE_CHECKING:\n    from protocol.wire import encode", {"protocol.wire"}),
        ("def f():\n    import protocol.wire", {"protocol.wire"}),
        ("import wire", set()),
    ],
)
def test_every_way_to_import_is_seen(source: str, found: set[str]) -> None:
    assert imported(ast.parse(source), {"protocol", "protocol.wire"}) == found


def test_a_circle_is_found_and_what_leads_to_it_is_not_in_it() -> None:
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert circles(arrows) == {frozenset({"b", "c"})}

"""Which tests run side by side. Owns the order of a run and who gets what; knows nothing of what a test checks.

Tests of one file share fixtures, so they stay together; a mark `xdist_group` makes larger units. These come first, for
they are the longest; then what starts processes, then what computes long, so that short units are left to fill the lanes.
Tests marked `alone` come last: nothing runs beside them. How long each lane had nothing to do is said at the end.

    worker gw0   the group `model` ─ … ─ unit/… ────────────┐ all others have ended
    worker gw1   the group `ray` ─ test_scaling.py ─ unit/… ┘   gw0 (or gw1): the unit `alone`
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

ALONE = "alone"
FIRST_TO_LAST = (
    "tests/e2e",
    "tests/unit/engine/cpu",
    "tests/unit/test_mutants.py",
    "tests/sim",
    "tests/model",
    "tests/property",
    "tests/unit/engine",
    "tests/house",
)
UNITS_FILE = "baton_units_file"
"""Where a worker writes which test belongs to which unit; ids of tests, which are all that it sends, do not say."""
_units_file = pytest.StashKey[Path]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long units first and those alone last; inside of a file the order is its own."""
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> tuple[bool, bool, int]:
    is_single = item.get_closest_marker("xdist_group") is None
    return unit_of(item) == ALONE, is_single, _place(item.nodeid)


def unit_of(item: pytest.Item) -> str:
    """What runs on one worker as a whole."""
    group = item.get_closest_marker("xdist_group")
    if item.get_closest_marker(ALONE) is not None:
        return ALONE
    return item.nodeid.partition("::")[0] if group is None else str(group.args[0])


def _place(node_id: str) -> int:
    places = (i for i, folder in enumerate(FIRST_TO_LAST) if node_id.startswith(folder))
    return next(places, len(FIRST_TO_LAST))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """On a worker, before it reports what it has collected."""
    worker: dict[str, Any] = getattr(session.config, "workerinput", {})
    if UNITS_FILE in worker:
        written = Path(worker[UNITS_FILE] + worker["workerid"])
        written.write_bytes(msgspec.json.encode({i.nodeid: unit_of(i) for i in session.items}))
        written.rename(worker[UNITS_FILE])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: WorkerController) -> None:
    node.workerinput[UNITS_FILE] = str(node.config.stash[_units_file])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    config.pluginmanager.register(Lanes(), "baton-lanes")
    directory = Path(tempfile.mkdtemp(prefix="baton-units-"))
    config.add_cleanup(lambda: shutil.rmtree(directory))
    config.stash[_units_file] = directory / "units"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> AloneAtTheEnd:
    config.option.loadscopereorder = False  # the order is the collection's
    return AloneAtTheEnd(config, log)


class Lanes:
    """When each worker process ran its last test that had others beside it, and when the last one alone ended."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._ended_s: dict[str, float] = {}
        self._alone_ended_s: float | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """On the controller; reports of a process's own tests have no `node`."""
        node = getattr(report, "node", None)
        if node is None or report.when != "teardown":
            return
        now_s = time.monotonic() - self._started_s
        if ALONE in report.keywords:
            self._alone_ended_s = now_s
        else:
            self._ended_s[node.gateway.id] = now_s

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """One line: a lane that ended long before the others waited for a unit that should have begun earlier."""
        if not self._ended_s:
            return
        ends = ", ".join(f"{name} {end_s:.0f} s" for name, end_s in sorted(self._ended_s.items()))
        idle_s = sum(max(self._ended_s.values()) - end_s for end_s in self._ended_s.values())
        alone = "" if self._alone_ended_s is None else f", alone until {self._alone_ended_s:.0f} s"
        terminalreporter.write_line(f"lanes ended at {ends}: idle for {idle_s:.0f} s{alone}")


class AloneAtTheEnd(LoadScopeScheduling):  # type: ignore[misc]
    """The unit ALONE is given to the last worker, once no other has anything left to run."""

    def schedule(self) -> None:
        self._units = msgspec.json.decode(self.config.stash[_units_file].read_bytes())
        super().schedule()

    def _split_scope(self, nodeid: str) -> str:
        return str(self._units[nodeid])

    def _assign_work_unit(self, node: WorkerController) -> None:
        if ALONE in self.workqueue:
            self.workqueue.move_to_end(ALONE)
        if self._is_alone_next():
            self._meet_at_the_end(node)
        else:
            self._give(node)

    def _give(self, node: WorkerController) -> None:
        """The next unit; one that crashed meanwhile takes nothing, and its end is about to be told."""
        unit, tests = next(iter(self.workqueue.items()))
        try:
            super()._assign_work_unit(node)
        except OSError:
            del self.assigned_work[node][unit]
            self.workqueue[unit] = tests

    def _reschedule(self, node: WorkerController) -> None:
        if node not in self.registered_collections:
            return  # it replaces one that crashed, and collects
        if self._is_alone_next() and not node.shutting_down:
            self._meet_at_the_end(node)
        else:
            super()._reschedule(node)

    def _is_alone_next(self) -> bool:
        return list(self.workqueue) == [ALONE]

    def _meet_at_the_end(self, node: WorkerController) -> None:
        """A worker runs its last test when it knows that none follows, so all but one are told so."""
        others = [other for other in self.nodes if other is not node]
        if any(not other.shutting_down for other in others):
            node.shutdown()
        elif not any(self._pending_of(self.assigned_work[other]) for other in others):
            self._give(node)

    def mark_test_complete(
        self, node: WorkerController, item_index: int, duration: float = 0
    ) -> None:
        super().mark_test_complete(node, item_index, duration)
        self._wake_the_last()

    def remove_node(self, node: WorkerController) -> str | None:
        """It has ended. What it was in the middle of has crashed it and is not tried again; others take the rest."""
        workload = self.assigned_work.pop(node)
        left = [
            (unit, i) for unit, tests in workload.items() for i, done in tests.items() if not done
        ]
        crashed = None
        if left:
            unit, crashed = left[0]
            workload[unit][crashed] = True
            self.workqueue.update((u, t) for u, t in workload.items() if not all(t.values()))
            for other in self.nodes:
                self._reschedule(other)
        self._wake_the_last()
        return crashed

    def _wake_the_last(self) -> None:
        if self._is_alone_next():
            for node in self.nodes:
                self._reschedule(node)

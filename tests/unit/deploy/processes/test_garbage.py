"""When garbage is collected in a process that starts."""

from __future__ import annotations

import gc

from deploy.processes.garbage import begin_collection, hold_collection


def test_nothing_is_collected_until_it_begins_and_what_is_there_stays() -> None:
    frozen = gc.get_freeze_count()
    hold_collection()
    try:
        assert not gc.isenabled()
        made: list[list[int]] = [[] for _ in range(100)]
    finally:
        begin_collection()
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(made)

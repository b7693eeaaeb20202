"""Which adapters stay in a worker's memory: the last used, and those that somebody uses."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, cast

from engine.adapters.resident import ResidentAdapters
from protocol.adapters import AdapterRef

if TYPE_CHECKING:
    from engine.adapters.content import Content


class Mapped:
    def __init__(self, digest: str) -> None:
        self.digest = digest


def mapped(_: Path, digest: str) -> Content:
    return cast("Content", Mapped(digest))


def residents(most: int) -> ResidentAdapters:
    return ResidentAdapters(Path("/nowhere"), most, lambda _: None, mapped)


def ref(digest: str) -> AdapterRef:
    return AdapterRef(f"name of {digest}", digest)


def test_the_least_recently_used_goes_and_comes_back_by_a_load() -> None:
    here = residents(2)
    for digest in ("a", "b", "a", "c"):
        here.hold(ref(digest))
    assert here.digests == ("a", "c")
    assert (len(here), here.loads) == (2, 3)
    here.hold(ref("b"))
    assert (here.digests, here.loads) == (("c", "b"), 4)


def test_what_somebody_uses_is_never_loaded_again_whoever_came_since() -> None:
    here = residents(1)
    held = here.hold(ref("a"))
    here.hold(ref("b"))
    assert here.digests == ("b",)
    assert here.hold(ref("a")) is held
    assert here.loads == 2


def test_of_a_thousand_only_as_many_stay_as_may() -> None:
    here = residents(32)
    for number in range(1000):
        here.hold(ref(str(number)))
    gc.collect()
    assert here.digests == tuple(map(str, range(968, 1000)))
    here.hold(ref("967"))
    assert here.loads == 1001

"""What every option brings to an application: models on demand, adapters, groups, an autoscaler. Owns their fakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from coordinator.edge.answers.adapters import AdapterBook, KeptContents
from coordinator.upstreams.settings import read_settings
from protocol.clock import ManualClock
from protocol.errors import ModelNotFound

GROUPS = """
model_list:
  - {model_name: group, litellm_params: {model: baton/tiny}}
"""


class Here:
    """Models that are always in memory."""

    async def enter(self, name: str, keep_alive_s: float | None = None) -> Callable[[], None]:
        return lambda: None

    async def load(self, name: str, keep_alive_s: float | None = None) -> None:
        return

    def unload(self, name: str) -> None:
        return

    def view(self, name: str) -> dict[str, Any]:
        return {"state": "loaded", "users": 0, "keep_alive_s": -1, "expires_in_s": None}


class Awake:
    """Models that never sleep."""

    async def sleep(self, model: str | None, level: int) -> None:
        return

    async def wake(self, model: str | None, parts: object) -> None:
        return

    def is_asleep(self, model: str | None) -> bool:
        return False


class Unrevised:
    """Models that have one revision each, and get no other."""

    def choose(self, name: str, asked: object) -> None:
        return None

    def model_of(self, name: str) -> None:
        return None

    def public_name(self, name: str) -> str:
        return name

    def names(self, model: str) -> None:
        return None

    def view(self) -> list[dict[str, Any]]:
        return []

    async def start(self, name: str, revision: str, model: str | None, weight: float) -> None:
        self._refuse(name)

    def weigh(self, name: str, weights: object) -> None:
        self._refuse(name)

    def promote(self, name: str, revision: str | None) -> str:
        self._refuse(name)

    def rollback(self, name: str) -> str:
        self._refuse(name)

    def _refuse(self, name: str) -> NoReturn:
        raise ModelNotFound(f"the model {name!r} has no revisions", "model")


class Policy:
    """An autoscaler that is off."""

    def settings(self) -> dict[str, Any]:
        return {"mode": "off"}

    def change(self, wish: object) -> dict[str, Any]:
        return {"mode": "off"}


def everything(directory: Path) -> dict[str, Any]:
    """Arguments of `create_app`; the router's file is written into `directory`."""
    file = directory / "router.yaml"
    file.write_text(GROUPS)
    contents = KeptContents(lambda _: "digest", lambda _: None, set)
    return {
        "residents": Here(),
        "policy": Policy(),
        "adapters": AdapterBook({"tiny": contents}, ManualClock(), {"tiny": "tiny"}),
        "revisions": Unrevised(),
        "sleeping": Awake(),
        "router": read_settings(file, {}),
    }

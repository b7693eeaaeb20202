"""What must happen again and again on an event loop. Owns the timer; must not know what is done."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)


class Periodic:
    """Calls `work` every `every_s` seconds. A call that fails is logged under `name`, and the next one comes all the same."""

    def __init__(self, name: str, every_s: float, work: Callable[[], None]) -> None:
        self._name = name
        self._every_s = every_s
        self._work = work
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """From now on, on the running loop; the first call is made at once."""
        self.close()
        self._turn()

    def _turn(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._every_s, self._turn)
        try:
            self._work()
        except Exception:
            log.exception("%s failed; it is tried again in %g s", self._name, self._every_s)

    def close(self) -> None:
        """No more calls; `start` may be called again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

"""What this system lets a process do about its threads' priorities."""

from __future__ import annotations

import os
import threading


def may_leave_idle_priority() -> bool:
    """Whether a thread of idle priority may be given the usual one again."""
    seen: list[bool] = []

    def attempt() -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        try:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        except PermissionError:
            seen.append(False)
        else:
            seen.append(True)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return seen[0]

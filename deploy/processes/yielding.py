"""How a process leaves the cores to others. Owns what it asks of the kernel's scheduler.

A nice process gets a small share of a core that others want, too. But what it has begun to run it runs to the end of its
slice, some milliseconds by default: a worker's thread that wakes meanwhile waits so long. So its slices are made short, which
Linux lets each process choose since 6.12; older ones give it the usual slices.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
"""Numbers of the system call, which libc has no function for."""
_ATTRIBUTES = struct.Struct("IIQiIQQQ")
"""struct sched_attr: its size, policy, flags, niceness, priority, runtime in ns, deadline, period."""
_SCHED_OTHER = 0


def yield_cores(niceness: int, slice_s: float) -> bool:
    """From now on, for this thread and those that it starts; False where slices are the kernel's own."""
    os.nice(niceness)
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        return False
    now = os.getpriority(os.PRIO_PROCESS, 0)
    told = _ATTRIBUTES.pack(_ATTRIBUTES.size, _SCHED_OTHER, 0, now, 0, int(slice_s * 1e9), 0, 0)
    return bool(ctypes.CDLL(None).syscall(number, 0, told, 0) == 0)

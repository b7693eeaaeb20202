"""The garbage collector of a process that starts. Owns when it begins.

What a process imports and makes at its start stays to its end. Walking through it while it grows is an eighth of a start, and
walking through it later stops whatever the process does.
"""

from __future__ import annotations

import gc


def hold_collection() -> None:
    """From the beginning of a process until `begin_collection`."""
    gc.disable()


def begin_collection() -> None:
    """Of what is made from now on."""
    gc.freeze()
    gc.enable()

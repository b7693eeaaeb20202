"""What is printed. Owns what becomes of it when nobody reads it any more."""

from __future__ import annotations

import os
import select
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

UNREAD = 128 + signal.SIGPIPE
"""The exit status of a program that this signal ends, as a shell tells it."""


def give_up(output: TextIO) -> bool:
    """Send the rest nowhere if the reader is gone, as `head -1` is in `baton status | head -1`; False if he is there."""
    ready = select.poll()
    ready.register(output.fileno(), select.POLLOUT)
    if not any(events & (select.POLLERR | select.POLLHUP) for _, events in ready.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output.fileno())
    os.close(nowhere)
    return True

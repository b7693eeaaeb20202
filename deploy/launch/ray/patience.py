"""Waiting with an end. Seconds in which this process did not run are not counted: who slept heard nothing."""

from __future__ import annotations

import asyncio
from typing import Any

SLICE_S = 0.25


async def happens_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, but no longer."""
    try:
        await asyncio.wait_for(event.wait(), max(seconds, 0.0))
    except TimeoutError:
        return False
    return True


async def ends_within(work: asyncio.Future[Any], seconds: float) -> bool:
    """Wait for work, but no longer; a pause of ours is one slice of it."""
    for _ in range(max(round(seconds / SLICE_S), 1)):
        done, _ = await asyncio.wait([work], timeout=SLICE_S)
        if done:
            return True
    return False

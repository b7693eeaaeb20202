"""Requests for workers that are not there yet. Owns whether a request may wait for them; pure.

    asleep ──a request comes: it is held──► waking ──a worker is ready──► awake ──nothing came for long──► asleep

A cluster that may sleep has no worker while nobody asks. What comes then waits in the line like any request, in its turn
and until its deadline; whoever sizes the pools sees the line and starts workers. Nothing here knows who that is: an
autoscaler whose ranges begin at 0, or whoever loads a model when it is asked for.
"""

from __future__ import annotations

from protocol.errors import WorkerLost


class Holding:
    """`may_sleep`: somebody starts workers when a request waits and there are none. `most_blocks`: of the largest worker
    that was ever seen, by which requests are judged while there is none; 0 before. `comes_and_goes`: a model that is loaded when it is
    asked for; who asked waits for it, also where its last worker has just died and is started again."""

    def __init__(self) -> None:
        self.may_sleep = False
        self.comes_and_goes = False
        self.most_blocks = 0

    def allow(self, *, sleep: bool) -> None:
        """Whether somebody does from now on."""
        self.may_sleep = sleep

    def come_and_go(self) -> None:
        """Its model is loaded when it is asked for, from now on."""
        self.comes_and_goes = True

    def saw(self, num_blocks: int) -> None:
        """A worker of that size served."""
        self.most_blocks = max(self.most_blocks, num_blocks)

    def check(self, wanted: int) -> None:
        """A request came and no worker is ready, of `wanted` that there should be: WorkerLost when it may not wait."""
        if self.may_sleep or (self.comes_and_goes and wanted):
            return
        if not wanted:
            raise WorkerLost(
                "the pools are empty, and nobody starts workers by itself; "
                "start some: baton scale prefill=1 decode=1, or baton autoscale --on"
            )
        raise WorkerLost("no worker is ready; the pools are starting or restarting")

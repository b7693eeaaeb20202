"""The owner's processes that have to do with Ray: the agent and, where we start it, Ray itself. Owns their restarts.

our Ray ended     the agent is ended with it; both again after 0.2, 1, 2 … 60 s
the agent ended   Ray was lost to it, or it broke; again after 0.2, 1, 2 … 60 s, until Ray answers
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from typing import TYPE_CHECKING

from deploy.config.topology import child_environment
from deploy.launch.child_process import ChildProcess
from deploy.launch.ray.lines import Lines
from deploy.launch.ray.patience import happens_within
from deploy.launch.ray.records import AgentReport, Attached, Finish
from launching.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from deploy.launch.ray.choice import RayChoice
    from deploy.launch.ray.records import OwnerOrder
    from protocol.clock import Clock

log = logging.getLogger(__name__)
RAY_IS_UP = "Ray runtime started"
RAY_STOPS_S = 10.0
FINISH_S = 11.0
"""Beyond the children's own time, how long the agent may take for the end."""


class RayConnection:
    """`on_report` gets what the agent says; `on_lost(reason)` is called for every end of it that was not asked for."""

    def __init__(
        self,
        choice: RayChoice,
        on_report: Callable[[AgentReport], None],
        on_lost: Callable[[str], None],
        clock: Clock,
    ) -> None:
        self._choice, self._own = choice, choice.own
        self._on_report, self._on_lost, self._clock = on_report, on_lost, clock
        self._ray: ChildProcess | None = None
        self._agent: ChildProcess | None = None
        self._lines: Lines[AgentReport] | None = None
        self._backoff = Backoff()
        self._started_s = 0.0
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._ended = asyncio.Event()

    def start(self) -> None:
        """Start Ray, if it is ours, and the agent when it is up."""
        self._started_s = self._clock.now_s()
        if self._own is None:
            self._start_agent()
            return
        parent = str(os.getpid())
        module = (sys.executable, "-P", "-m", "deploy.launch.ray.own_ray", parent, "--")
        self._ray = ChildProcess(
            [*module, *self._own.command],
            {**child_environment(keeps_secrets=True), **self._choice.environment},
            on_line=self._on_ray_line,
            on_exit=self._on_ray_exit,
            defers_interrupt=False,
        )

    def send(self, order: OwnerOrder) -> None:
        """To the agent; nothing happens while there is none: it is told everything when it comes."""
        if self._lines is not None:
            self._lines.send(order)

    async def close(self, shutdown_timeout_s: float) -> bool:
        """End all that was placed, the agent and our Ray; False when not all that was placed is known to be gone."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        could_tell = self._lines is not None
        self.send(Finish())
        is_done = await self._wait_for_end(self._agent, shutdown_timeout_s + FINISH_S)
        self.kill()
        if self._ray is not None and self._ray.running:
            self._ray.terminate()
            if not await self._wait_for_end(self._ray, RAY_STOPS_S):
                self._ray.kill()
        return could_tell and is_done and self._agent is not None and self._agent.status == 0

    def kill(self) -> None:
        """The agent, at once."""
        if self._agent is not None:
            self._agent.kill()

    async def _wait_for_end(self, child: ChildProcess | None, timeout_s: float) -> bool:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        while child is not None and child.running:
            self._ended.clear()
            if not await happens_within(self._ended, until_s - loop.time()):
                return False
        return True

    # ---- our Ray

    def _on_ray_line(self, line: str) -> None:
        if RAY_IS_UP in line:
            self._if_open(self._start_agent)

    def _on_ray_exit(self, status: int) -> None:
        self._ended.set()
        if self._closing:
            return
        self.kill()
        tail = "; ".join(list(self._ray.tail)[-1:]) if self._ray is not None else ""
        self._again(f"Ray ended with status {status} ({tail})")

    # ---- the agent

    def _start_agent(self) -> None:
        ours, theirs = socket.socketpair()
        parent = str(os.getpid())
        command = [sys.executable, "-P", "-m", "deploy.launch.ray.agent"]
        command += [self._choice.address, self._choice.launch]
        command += ["--channel", str(theirs.fileno()), "--parent", parent]
        try:
            self._agent = ChildProcess(
                command,
                {**child_environment(keeps_secrets=True), **self._choice.environment},
                on_line=lambda _: None,
                on_exit=self._on_agent_exit,
                pass_fds=(theirs.fileno(),),
                defers_interrupt=False,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._spawn(self._listen(ours))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _listen(self, ours: socket.socket) -> None:
        lines: Lines[AgentReport] = await Lines.over(ours, AgentReport)
        self._lines = lines
        while (report := await lines.receive()) is not None:
            if isinstance(report, Attached):
                self._started_s = self._clock.now_s()
            try:
                self._on_report(report)
            except Exception:
                log.exception("a report of the agent could not be followed: %s", report)
        if self._lines is lines:
            self._lines = None
        lines.close()

    def _on_agent_exit(self, status: int) -> None:
        self._ended.set()
        if self._closing or (
            self._own is not None and (self._ray is None or not self._ray.running)
        ):
            return
        tail = "; ".join(list(self._agent.tail)[-1:]) if self._agent is not None else ""
        self._again(tail or f"the agent ended with status {status}")

    def _again(self, reason: str) -> None:
        self._on_lost(reason)
        delay_s = self._backoff.next_s(self._clock.now_s() - self._started_s)
        ray_runs = self._ray is not None and self._ray.running
        action = self._start_agent if ray_runs else self.start
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._if_open, action)

    def _if_open(self, action: Callable[[], None]) -> None:
        if self._closing:
            return
        try:
            action()
        except OSError as error:  # no descriptor or memory is left now: tried again like what ended
            self._again(f"could not be started: {error}")

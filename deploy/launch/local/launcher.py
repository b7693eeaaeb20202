"""The local launcher: one supervised process tree. Owns who runs, restarts and the way out; torch-free.

start ──► all processes side by side ──► "ready" on a pipe from the coordinator ──► serving
  any exit before ready: stop everything, show its last words
  a worker's exit later: tell the coordinator, start it again after 0.2, 1, 2, 4 … 60 s
  the coordinator's exit: start it again; workers register by themselves
  the coordinator's orders: workers more, workers less; what there is is told every second
SIGINT, SIGTERM, SIGHUP: SIGTERM to all, wait, SIGKILL; a second signal kills at once
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from deploy.config.topology import child_environment
from deploy.host.gpu_plan import least_used
from deploy.host.memory import available_bytes, check_one_more
from deploy.launch.backoff import Backoff
from deploy.launch.local.child_process import ChildProcess
from deploy.launch.local.control import ControlLink
from deploy.launch.plan import next_share
from protocol.errors import ConfigError, WorkerLost
from protocol.messages.launcher import (
    LauncherOrder,
    LauncherWorker,
    RetireOrder,
    RoleOrder,
    ScaleOrder,
    ScaleRefused,
    StopOrder,
    WorkerExited,
)
from protocol.specs import WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from deploy.launch.plan import Plan
    from protocol.clock import Clock
    from protocol.specs import CoordinatorSpec

COORDINATOR = "coordinator"
HELLO_EVERY_S = 1.0
SETTLE_S = 15.0
"""A worker started less long ago may not have taken its KV pool yet."""
_KILL_WAIT_S = 5.0


@dataclass(frozen=True)
class Modules:
    """What the children run; tests put their own here."""

    coordinator: str = "deploy.processes.coordinator_main"
    worker: str = "deploy.processes.worker_main"


@dataclass
class Slot:
    """A place for one process, which may be filled several times. `leaving` means: not again.
    `is_new`: ordered while serving; if its first start cannot work, the order is refused."""

    name: str
    spec: CoordinatorSpec | WorkerSpec
    num_threads: int
    process: ChildProcess | None = None
    started_s: float = 0.0
    leaving: bool = False
    is_new: bool = False
    is_stopping: bool = False
    backoff: Backoff = field(default_factory=Backoff)


class Launcher:
    """Runs a plan until told to stop. `say(name, line)` shows what children print."""

    def __init__(
        self,
        plan: Plan,
        directory: Path,
        clock: Clock,
        say: Callable[[str, str], None],
        shutdown_timeout_s: float = 2.0,
        modules: Modules | None = None,
    ) -> None:
        self.plan = plan
        self.ready = False
        self._directory, self._clock, self._say = directory, clock, say
        self._shutdown_timeout_s = shutdown_timeout_s
        self._modules = modules or Modules()
        self.available_bytes: Callable[[], int] = available_bytes
        self._slots: dict[str, Slot] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._stopping = False
        self._on_ready: Callable[[str], None] = lambda _: None

    @property
    def news(self) -> dict[str, str]:
        """What the banner says of the launcher."""
        return {}

    async def run(self, on_ready: Callable[[str], None]) -> None:
        """Until a signal. `on_ready(rest of the ready line)` is called once. ConfigError or WorkerLost
        when a child ends before everything is ready."""
        loop = asyncio.get_running_loop()
        self._on_ready = on_ready
        self._outcome: asyncio.Future[None] = loop.create_future()
        self._all_gone = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        self._link = ControlLink(self.plan.coordinator.control, self._on_order)
        try:
            self._add(Slot(COORDINATOR, self.plan.coordinator, 1))
            for spec in self.plan.workers:
                self._add(Slot(spec.worker_id, spec, spec.num_threads))
            self._greet()
            await self._outcome
        finally:
            await self._stop_all()
            self._link.close()

    # ---- starting

    def _add(self, slot: Slot) -> None:
        self._slots[slot.name] = slot
        self._write_spec(slot)
        self._start(slot)

    def _write_spec(self, slot: Slot) -> None:
        path = self._directory / f"{slot.name}.json"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(slot.spec))

    def _start(self, slot: Slot) -> None:
        is_coordinator = slot.name == COORDINATOR
        module = self._modules.coordinator if is_coordinator else self._modules.worker
        command = [sys.executable, "-P", "-m", module, str(self._directory / f"{slot.name}.json")]
        command += ["--parent", str(os.getpid())]
        reading, writing = os.pipe() if is_coordinator else (-1, -1)
        if is_coordinator:
            command += ["--ready-fd", str(writing)]
        slot.started_s = self._clock.now_s()
        slot.process = ChildProcess(
            command,
            child_environment(slot.num_threads, _gpu_of(slot.spec)),
            on_line=lambda line: self._say(slot.name, line),
            on_exit=lambda status: self._on_exit(slot, status),
            pass_fds=(writing,) if is_coordinator else _inherited(slot.spec),
        )
        if is_coordinator:
            os.close(writing)
            loop = asyncio.get_running_loop()
            loop.add_reader(reading, self._on_ready_line, reading)

    def _on_ready_line(self, descriptor: int) -> None:
        """The coordinator says `ready`, or its end of the pipe closed without a word."""
        line = os.read(descriptor, 1 << 16).decode("utf-8", "replace").strip()
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        if line.startswith("ready") and not self._stopping and not self.ready:
            self.ready = True
            self._on_ready(line.removeprefix("ready").strip())

    def _greet(self) -> None:
        """From the start on: a coordinator that comes back learns how many workers are wanted before it serves."""
        self._later(HELLO_EVERY_S, self._greet)
        coordinator = self._slots[COORDINATOR].process
        if coordinator is not None and coordinator.running:
            self._link.hello(
                [
                    LauncherWorker(worker_id=slot.name, role=slot.spec.role, leaving=slot.leaving)
                    for slot in self._slots.values()
                    if isinstance(slot.spec, WorkerSpec)
                ]
            )

    # ---- what children and the coordinator do

    def _on_exit(self, slot: Slot, status: int) -> None:
        if self._stopping:
            if not self._running():
                self._all_gone.set()
        elif slot.leaving:
            del self._slots[slot.name]
            self._report(slot, status, None)
        elif not self.ready:
            self._finish(_start_failure(slot, status))
        elif slot.is_new and status == 2:
            self._refuse(slot.name, str(_start_failure(slot, status)))
        else:
            delay_s = slot.backoff.next_s(self._clock.now_s() - slot.started_s)
            self._say(slot.name, f"{ending(status)}; starting it again in {delay_s:g} s")
            self._report(slot, status, delay_s)
            self._later(delay_s, lambda: self._restart(slot))

    def _restart(self, slot: Slot) -> None:
        if not self._stopping and not slot.leaving:
            slot.is_new = False
            self._start(slot)

    def _report(self, slot: Slot, status: int, restart_in_s: float | None) -> None:
        if slot.name != COORDINATOR and slot.process is not None:
            self._link.send(
                WorkerExited(
                    worker_id=slot.name,
                    pid=slot.process.pid,
                    status=status,
                    restart_in_s=restart_in_s,
                )
            )

    def _on_order(self, order: LauncherOrder) -> None:
        match order:
            case ScaleOrder():
                self._scale(order)
            case StopOrder():
                self._stop_one(order.worker_id)
            case RetireOrder():
                if (slot := self._worker(order.worker_id)) is not None:
                    slot.leaving = True
            case RoleOrder():
                self._change_role(order)

    def _worker(self, worker_id: str) -> Slot | None:
        return None if worker_id == COORDINATOR else self._slots.get(worker_id)

    def _scale(self, order: ScaleOrder) -> None:
        """Start a worker like the others of this plan, on the least used cores, if its KV pool fits."""
        if self._stopping or order.worker_id in self._slots:
            return
        now_s = self._clock.now_s()
        slots = [slot for slot in self._slots.values() if isinstance(slot.spec, WorkerSpec)]
        starting = sum(now_s - slot.started_s < SETTLE_S for slot in slots)
        model = self.plan.like(order.role)
        try:
            if (
                model.device == "cpu"
            ):  # a GPU's own memory is asked for by the worker, whose start may fail
                check_one_more(model.kv_cache_bytes, starting, self.available_bytes())
        except ConfigError as error:
            self._refuse(order.worker_id, str(error))
            return
        workers = [slot.spec for slot in slots if isinstance(slot.spec, WorkerSpec)]
        cores = next_share(workers, tuple({c for w in self.plan.workers for c in w.cores}))
        spec = msgspec.structs.replace(
            model,
            worker_id=order.worker_id,
            role=order.role,
            cores=cores,
            num_threads=len(cores) or model.num_threads,
            visible_devices=least_used(workers, model),
        )
        self._add(Slot(spec.worker_id, spec, spec.num_threads, is_new=True))

    def _refuse(self, worker_id: str, reason: str) -> None:
        self._slots.pop(worker_id, None)
        self._say(worker_id, f"not started: {reason}")
        self._link.send(ScaleRefused(worker_id=worker_id, reason=reason))

    def _change_role(self, order: RoleOrder) -> None:
        """The process has its order from the coordinator; its next start reads the spec."""
        slot = self._worker(order.worker_id)
        if slot is not None and isinstance(slot.spec, WorkerSpec):
            slot.spec = msgspec.structs.replace(slot.spec, role=order.role)
            self._write_spec(slot)

    def _stop_one(self, worker_id: str) -> None:
        """End a worker for good. One that does not run now has ended already: only its slot goes."""
        slot = self._worker(worker_id)
        if slot is None or slot.process is None:
            return
        slot.leaving = True
        if not slot.process.running:
            del self._slots[worker_id]
            self._report(slot, slot.process.status or 0, None)
        elif not slot.is_stopping:
            slot.is_stopping = True
            slot.process.terminate()
            self._later(self._shutdown_timeout_s, slot.process.kill)

    # ---- the way out

    def _on_signal(self) -> None:
        if self._stopping:
            self._kill_all()
        self._finish(None)

    def _finish(self, error: Exception | None) -> None:
        if self._outcome.done():
            return
        if error is None:
            self._outcome.set_result(None)
        else:
            self._outcome.set_exception(error)

    async def _stop_all(self) -> None:
        self._stopping = True
        for timer in self._timers:
            timer.cancel()
        for process in self._running():
            process.terminate()
        for wait_s in (self._shutdown_timeout_s, _KILL_WAIT_S):
            if not self._running():
                return
            try:
                await asyncio.wait_for(self._all_gone.wait(), wait_s)
            except TimeoutError:
                self._kill_all()

    def _kill_all(self) -> None:
        for process in self._running():
            process.kill()

    def _running(self) -> list[ChildProcess]:
        processes = [slot.process for slot in self._slots.values()]
        return [process for process in processes if process is not None and process.running]

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self._timers = {timer for timer in self._timers if timer.when() > loop.time()}
        self._timers.add(loop.call_later(delay_s, action))


def ending(status: int) -> str:
    """How a process ended, for people."""
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _start_failure(slot: Slot, status: int) -> Exception:
    """What a person sees when a child does not come up; status 2 means that a flag cannot work."""
    lines = list(slot.process.tail)[-1:] if slot.process is not None else []
    said = f": {lines[0]}" if lines else ""
    message = f"{slot.name} {ending(status)} while starting{said}"
    return ConfigError(message) if status == 2 else WorkerLost(message)


def _gpu_of(spec: CoordinatorSpec | WorkerSpec) -> str | None:
    return spec.visible_devices if isinstance(spec, WorkerSpec) else None


def _inherited(spec: CoordinatorSpec | WorkerSpec) -> tuple[int, ...]:
    """Descriptors that a worker gets by number."""
    shared = spec.weights_fd if isinstance(spec, WorkerSpec) else None
    return () if shared is None else (shared,)

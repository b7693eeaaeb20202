"""The local launcher: one supervised process tree. Owns its processes, its timers and the way out; torch-free.

start ──► all processes side by side ──► "ready" on a pipe from the coordinator ──► serving
SIGINT, SIGTERM, SIGHUP: SIGINT to all, wait, SIGKILL; a second signal kills at once

Who should run, and what an exit or an order means, is decided in `launching.roster`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from deploy.config.topology import child_environment
from deploy.host.gpu_plan import least_used
from deploy.host.later_models import worker_of
from deploy.host.memory import SETTLE_S, available_bytes, check_one_more
from deploy.host.model_memory import step_bytes_of_worker
from deploy.launch.child_process import ChildProcess, WatchedProcess, reap_adopted
from deploy.launch.control import ControlLink
from deploy.launch.local.forks import Forks, adopt_orphans
from deploy.launch.local.standby import Standbys
from deploy.launch.plan import next_share
from deploy.launch.stores import path_beside
from launching.foreman import Foreman
from launching.roster import COORDINATOR, HELLO_EVERY_S, Exit, Place, Roster, Spec
from protocol.errors import ConfigError
from protocol.ids import key_of
from protocol.messages.launcher import NOT_STARTED
from protocol.periodic import Periodic
from protocol.specs import CoordinatorSpec, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from deploy.launch.local.forks import Fork
    from deploy.launch.plan import Plan
    from launching.roster import Message
    from protocol.clock import Clock
    from protocol.messages.launcher import ScaleOrder
    from protocol.roles import Role

_KILL_WAIT_S = 5.0
STANDBY, FORK_SERVER = "standby", "fork server"


@dataclass(frozen=True)
class Modules:
    """What the children run; tests put their own here."""

    coordinator: str = "deploy.processes.coordinator_main"
    worker: str = "deploy.processes.worker_main"
    fork_server: str = "deploy.processes.fork_server"


class Launcher:
    """Runs a plan until told to stop; the foreman's crew. `say(name, line)` shows what children print."""

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
        self.roster = Roster("local", os.getpid(), self._more)
        self._foreman = Foreman(self.roster, self, clock)
        self._directory, self._clock, self.say = directory, clock, say
        self._shutdown_timeout_s = shutdown_timeout_s
        self._modules = modules or Modules()
        self.available_bytes: Callable[[], int] = available_bytes
        self._processes: dict[str, WatchedProcess] = {}
        self._standbys = Standbys(plan.standby_workers, self, clock)
        are_on_demand = plan.coordinator.memory_budget_bytes is not None
        self._forks = Forks(self, clock) if are_on_demand else None
        self._ending: set[WatchedProcess] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._on_ready: Callable[[str], None] = lambda _: None
        self._hellos = Periodic("saying what runs", HELLO_EVERY_S, self._greet)

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
        self._link = ControlLink(self.plan.coordinator.control, self._foreman.on_order)
        try:
            if self._forks is not None:
                adopt_orphans()
                self._forks.start()
            specs: list[Spec] = [self.plan.coordinator, *self.plan.first_workers]
            for spec in specs:
                self.start(self.roster.add(spec))
            self._hellos.start()
            await self._outcome
        finally:
            self._hellos.close()
            await self._stop_all()
            self._link.close()

    # ---- what the roster wants done

    def respec(self, place: Place) -> None:
        """See Crew: a start reads the file."""
        _write(self._path(place), place.spec)

    def start(self, place: Place) -> None:
        """See Crew. What the system cannot start now, for want of descriptors or memory, is tried again like what ended."""
        self.roster.begin(place, self._clock.now_s())
        self._start(place, self._spawn)

    def _start(self, place: Place, how: Callable[[Place], None]) -> None:
        try:
            how(place)
        except OSError as error:
            self._foreman.exited(place.name, Exit(NOT_STARTED, str(error)))

    def _spawn(self, place: Place) -> None:
        self.respec(place)
        if place.worker is None:
            self._begin_coordinator(place)
            return
        path = self._path(place)
        if not self._becomes(place, path) and not self._forks_away(place, path):
            self._begin(place)

    def _begin(self, place: Place) -> None:
        """A worker, from nothing."""
        self._run(place, self._command(self._modules.worker, place), _inherited(place.spec))

    def _begin_coordinator(self, place: Place) -> None:
        reading, writing = os.pipe()
        command = [*self._command(self._modules.coordinator, place), "--ready-fd", str(writing)]
        try:
            self._run(place, command, (writing,))
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        asyncio.get_running_loop().add_reader(reading, self._on_ready_line, reading)

    def _path(self, place: Place) -> Path:
        return self._directory / f"{place.name}.json"

    def _command(self, module: str, place: Place) -> list[str]:
        path = str(self._path(place))
        return [sys.executable, "-P", "-m", module, path, "--parent", str(os.getpid())]

    def _run(self, place: Place, command: list[str], pass_fds: tuple[int, ...]) -> None:
        process = self._processes[place.name] = ChildProcess(
            command,
            child_environment(
                _num_threads(place.spec),
                _gpu_of(place.spec),
                keeps_secrets=_asks_others(place.spec),
            ),
            on_line=lambda line: self.say(place.name, line),
            on_exit=lambda status: self._on_exit(place, status),
            pass_fds=pass_fds,
        )
        place.runs_as(process.pid)

    def _becomes(self, place: Place, path: Path) -> bool:
        """Whether a standby is that worker now."""
        process = place.worker and self._standbys.take(place.worker, path)
        if not process:
            return False
        process.becomes(partial(self.say, place.name), partial(self._on_exit, place))
        self._processes[place.name] = process
        place.runs_as(process.pid)
        return True

    def _forks_away(self, place: Place, path: Path) -> bool:
        """Whether it will be a fork, unless the server fails before; only such as need nothing from their very start."""
        spec = place.worker
        if self._forks is None or spec is None or not spec.role.computes or _inherited(spec):
            return False
        return self._forks.fork(path, partial(self._forked, place, place.generation))

    def _forked(self, place: Place, generation: int, fork: Fork | None) -> None:
        """It is there and waits for the word; None: it must begin by itself."""
        is_wanted = place.generation == generation and bool(self.roster.due(place))
        if fork is None:
            if is_wanted:
                self._start(place, self._begin)
        elif not is_wanted:
            fork.refuse()
        else:
            self._start(place, partial(self._watch, fork))

    def _watch(self, fork: Fork, place: Place) -> None:
        output, reap = os.fdopen(fork.output, "rb", buffering=0), partial(reap_adopted, fork.pid)
        hears = partial(self.say, place.name), partial(self._on_exit, place)
        try:
            self._processes[place.name] = WatchedProcess(fork.pid, output, reap, *hears)
        finally:
            fork.go()
        place.runs_as(fork.pid)

    def begin_server(self, orders_fd: int, on_exit: Callable[[int], None]) -> ChildProcess:
        """See Parent."""
        command = [sys.executable, "-P", "-m", self._modules.fork_server, str(orders_fd)]
        return ChildProcess(
            [*command, "--parent", str(os.getpid())],
            child_environment(1),
            on_line=partial(self.say, FORK_SERVER),
            on_exit=on_exit,
            pass_fds=(orders_fd,),
        )

    def begin(
        self, template: WorkerSpec, orders_fd: int, on_exit: Callable[[int], None]
    ) -> ChildProcess:
        """See Nursery."""
        path = self._directory / f"{STANDBY}{key_of(template.worker_id)}.json"
        _write(path, template)
        command = [sys.executable, "-P", "-m", self._modules.worker, str(path)]
        command += ["--parent", str(os.getpid()), "--standby-fd", str(orders_fd)]
        return ChildProcess(
            command,
            child_environment(template.num_threads, template.visible_devices),
            on_line=partial(self.say, STANDBY),
            on_exit=on_exit,
            pass_fds=(orders_fd, *_inherited(template)),
        )

    def end(self, place: Place) -> None:
        """See Crew. One that does not run now has ended already."""
        process = self._processes.get(place.name)
        if process is None or not process.running:
            status = process.status if process is not None else None
            self._foreman.gone(place.name, status or 0)
        elif process not in self._ending:
            self._ending.add(process)
            process.interrupt()
            self.later(self._shutdown_timeout_s, process.kill)

    def tell(self, message: Message) -> None:
        """See Crew."""
        self._link.send(message)

    def fail(self, error: Exception) -> None:
        """See Crew."""
        self._finish(error)

    # ---- what children and the coordinator do

    def _on_ready_line(self, descriptor: int) -> None:
        """The coordinator says `ready`, or its end of the pipe closed without a word."""
        line = os.read(descriptor, 1 << 16).decode("utf-8", "replace").strip()
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        if line.startswith("ready") and self.roster.served():
            self._on_ready(line.removeprefix("ready").strip())
            self._standbys.fill(_one_a_model(self.plan.workers))

    def _on_exit(self, place: Place, status: int) -> None:
        process = self._processes[place.name]
        self._ending.discard(process)
        tail = list(process.tail)[-1:]
        ended = Exit(status, tail[0] if tail else "")
        self._foreman.exited(place.name, ended)
        if self.roster.stopping and not self._running():
            self._all_gone.set()

    def _greet(self) -> None:
        """From the start on: a coordinator that comes back learns how many workers are wanted before it serves."""
        if self._processes[COORDINATOR].running:
            self._link.send(self.roster.hello())
        if self._forks is not None:
            watched = [*self._processes.values(), *self._standbys.processes]
            self._forks.bury_strangers({process.pid for process in watched if process.running})

    def _more(self, order: ScaleOrder, now_s: float) -> WorkerSpec:
        """A worker like the others of this plan, on the least used cores, if its KV pool fits."""
        workers = self.roster.workers
        model = self._like(order.role, key_of(order.worker_id))
        if model.device == "cpu":  # what a GPU has, the worker finds out, whose start may fail
            starting = [spec.kv_cache_bytes for spec in self.roster.starting(now_s - SETTLE_S)]
            step_bytes = step_bytes_of_worker(model) if order.role.computes else 0
            check_one_more(model.kv_cache_bytes, starting, self.available_bytes(), step_bytes)
        shared = tuple({c for w in self.plan.workers for c in w.cores})
        cores = next_share(workers, shared, len(model.cores)) if order.role.computes else ()
        return msgspec.structs.replace(
            model,
            worker_id=order.worker_id,
            role=order.role,
            cores=cores,
            lent_cores=(),  # its cores are another's, who lends them
            num_threads=len(cores) or model.num_threads,
            visible_devices=least_used(workers, model),
            store_path=path_beside(model, order.worker_id),
        )

    def _like(self, role: Role, key: str) -> WorkerSpec:
        """A worker of the plan, or what one would be for a model that came later."""
        if any(key_of(worker.worker_id) == key for worker in self.plan.workers):
            return self.plan.like(role, key)
        place = self.roster.get(COORDINATOR)
        models = place.spec.models if place and isinstance(place.spec, CoordinatorSpec) else ()
        for model in models:
            if model.key == key and model.like is not None:
                return worker_of(model, self.plan.like(role, model.like))
        raise ConfigError(f"there is no model with the key {key!r}")

    # ---- the way out

    def _on_signal(self) -> None:
        if self.roster.stopping:
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
        self.roster.close()
        self._standbys.close()
        if self._forks is not None:
            self._forks.close()
        for timer in self._timers:
            timer.cancel()
        for process in self._running():
            process.interrupt()
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

    def _running(self) -> list[WatchedProcess]:
        return [process for process in self._processes.values() if process.running]

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """See Crew."""
        loop = asyncio.get_running_loop()
        self._timers = {timer for timer in self._timers if timer.when() > loop.time()}
        self._timers.add(loop.call_later(delay_s, action))


def _one_a_model(workers: Sequence[WorkerSpec]) -> Iterable[WorkerSpec]:
    return {key_of(w.worker_id): w for w in reversed(workers) if w.role.computes}.values()


def _write(path: Path, spec: Spec) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(spec))


def _num_threads(spec: Spec) -> int:
    return spec.num_threads if isinstance(spec, WorkerSpec) else 1


def _gpu_of(spec: Spec) -> str | None:
    return spec.visible_devices if isinstance(spec, WorkerSpec) else None


def _asks_others(spec: Spec) -> bool:
    """Whether it has other servers' keys in its environment: the router's file names the variables."""
    return not isinstance(spec, WorkerSpec) and spec.router_config is not None


def _inherited(spec: Spec) -> tuple[int, ...]:
    """Descriptors that a worker gets by number."""
    shared = spec.weights_fd if isinstance(spec, WorkerSpec) else None
    return () if shared is None else (shared,)

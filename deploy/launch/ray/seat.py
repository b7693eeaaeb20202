"""A seat: the Ray actor that holds a process's place on a node. Owns starting or adopting the keeper there.

It computes nothing and carries no token: its child's child speaks ZeroMQ with the coordinator. When the
actor dies the keeper goes on; when Ray starts the actor again, it finds the keeper and adopts it.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import TYPE_CHECKING

import msgspec
import ray

from deploy.host.affinity import allowed_cores, quota_cores
from deploy.host.memory import available_bytes
from deploy.launch.ray.lines import Lines
from deploy.launch.ray.node_directory import (
    keepers,
    may_keep,
    node_directory,
    reap,
    remove_dead_keeper,
    write_private,
    write_record,
)
from deploy.launch.ray.node_model import model_here
from deploy.launch.ray.records import (
    Adopt,
    End,
    Ended,
    KeeperHello,
    KeeperNews,
    KeeperOrder,
    NodeFacts,
    Run,
    Started,
)
from launching.roster import COORDINATOR
from protocol.errors import BatonError, InternalError
from protocol.specs import CoordinatorSpec, WorkerSpec

if TYPE_CHECKING:
    from pathlib import Path

NEWS_WAIT_S = 10.0
HELLO_WAIT_S = 10.0
MODULES = {True: "deploy.processes.coordinator_main", False: "deploy.processes.worker_main"}


class Seat:
    """At most one keeper. Arguments and results are JSON: what Ray pickles is bytes."""

    def __init__(self, name: str, launch: str) -> None:
        self._name, self._launch = name, launch
        self._keeper: Lines[KeeperHello | KeeperNews] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._news: asyncio.Queue[KeeperNews] = asyncio.Queue()

    async def facts(self) -> bytes:
        """NodeFacts of where Ray put this seat."""
        context, ip = ray.get_runtime_context(), ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((ip, 0))
            free_port = int(probe.getsockname()[1])
        facts = NodeFacts(
            node_id=context.get_node_id(),
            session=context.get_session_name(),
            ip=ip,
            hostname=socket.gethostname(),
            cores=allowed_cores(),
            quota=quota_cores(),
            available_bytes=available_bytes(),
            free_port=free_port,
        )
        return msgspec.json.encode(facts)

    async def run(self, order: bytes) -> str:
        """Start the process, or adopt the one that is here; the reason when it cannot be."""
        try:
            await self._run(msgspec.json.decode(order, type=Run))
        except (BatonError, OSError) as error:
            return f"{error}"
        return ""

    async def news(self) -> bytes:
        """What happened since the last call: a list of KeeperNews, empty after some seconds of peace."""
        try:
            found = [await asyncio.wait_for(self._news.get(), NEWS_WAIT_S)]
        except TimeoutError:
            found = []
        while not self._news.empty():
            found.append(self._news.get_nowait())
        return msgspec.json.encode(found)

    async def end(self, timeout_s: float) -> None:
        """End the process and its keeper; returns when they are gone."""
        if self._keeper is None or self._listening is None:
            return
        self._keeper.send(End(timeout_s=timeout_s))
        await asyncio.wait([self._listening], timeout=timeout_s + 5.0)

    # ---- keepers

    async def _run(self, run: Run) -> None:
        directory = node_directory(self._launch)
        reap(directory.parent, self._launch)
        spec = await asyncio.to_thread(_prepared, run)
        if self._listening is not None and not self._listening.done():
            _respec(keepers(directory, self._name)[:1], spec, run.chat_template)
        elif not await self._adopt(run, spec, directory):
            if run.only_keep:
                self._news.put_nowait(Ended(name=self._name, pid=0, status=0, restart_in_s=None))
            else:
                await self._start(run, spec, directory)

    async def _adopt(self, run: Run, spec: CoordinatorSpec | WorkerSpec, directory: Path) -> bool:
        here = _place()
        for order_file in keepers(directory, self._name):
            keeper, hello = await _greet(order_file)
            if keeper is None or hello is None:
                remove_dead_keeper(order_file)
                continue
            if not may_keep((hello.node_id, hello.session), here):
                keeper.close()
                continue
            _respec([order_file], spec, run.chat_template)
            self._take(keeper, here)
            self._news.put_nowait(Started(name=self._name, pid=hello.engine_pid, kept=True))
            return True
        return False

    async def _start(self, run: Run, spec: CoordinatorSpec | WorkerSpec, directory: Path) -> None:
        order_file = directory / f"{self._name}.{run.generation}.keep"
        here = _place()
        _respec([order_file], spec, run.chat_template)
        order = KeeperOrder(
            name=self._name,
            generation=run.generation,
            module=MODULES[self._name == COORDINATOR],
            spec_path=str(order_file.with_suffix(".json")),
            run_directory=str(_run_directory(order_file)),
            num_threads=run.num_threads,
            gpu=spec.visible_devices if isinstance(spec, WorkerSpec) else None,
            node_id=here[0],
            session=here[1],
            tells_ready=self._name == COORDINATOR,
            shutdown_timeout_s=run.shutdown_timeout_s,
        )
        write_record(order_file, order)
        command = [sys.executable, "-P", "-m", "deploy.launch.ray.keeper", str(order_file)]
        starter = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
        )
        if await starter.wait() != 0:
            raise InternalError(f"the keeper of {self._name} ended with {starter.returncode}")
        keeper, hello = await _greet(order_file)
        if keeper is None or hello is None:
            raise InternalError(f"the keeper of {self._name} does not answer")
        self._take(keeper, here)

    def _take(self, keeper: Lines[KeeperHello | KeeperNews], here: tuple[str, str]) -> None:
        keeper.send(Adopt(node_id=here[0], session=here[1]))
        self._keeper = keeper
        self._listening = asyncio.create_task(self._listen(keeper))

    async def _listen(self, keeper: Lines[KeeperHello | KeeperNews]) -> None:
        is_over = False
        while (news := await keeper.receive()) is not None:
            if not isinstance(news, KeeperHello):
                self._news.put_nowait(news)
                is_over = isinstance(news, Ended) and news.restart_in_s is None
        keeper.close()
        if not is_over:  # killed, and its engine with it
            self._news.put_nowait(Ended(name=self._name, pid=0, status=-9, restart_in_s=None))


def _place() -> tuple[str, str]:
    context = ray.get_runtime_context()
    return context.get_node_id(), context.get_session_name()


async def _greet(
    order_file: Path,
) -> tuple[Lines[KeeperHello | KeeperNews] | None, KeeperHello | None]:
    """A connection to a keeper and its first words; None for what is not there."""
    kind = KeeperHello | KeeperNews
    try:
        keeper: Lines[KeeperHello | KeeperNews] = await Lines.to(
            str(order_file.with_suffix(".sock")), kind
        )
        hello = await asyncio.wait_for(keeper.receive(), HELLO_WAIT_S)
    except (OSError, TimeoutError):
        return None, None
    return keeper, hello if isinstance(hello, KeeperHello) else None


def _run_directory(order_file: Path) -> Path:
    return order_file.with_suffix(".run")


def _respec(
    order_files: list[Path], spec: CoordinatorSpec | WorkerSpec, chat_template: str | None
) -> None:
    """What the engine reads at its next start."""
    for order_file in order_files:
        own = _run_directory(order_file)
        own.mkdir(mode=0o700, exist_ok=True)
        if isinstance(spec, WorkerSpec):
            spec = msgspec.structs.replace(spec, run_directory=str(own))
        elif chat_template is not None:
            placed = own / "chat_template.jinja"
            write_private(placed, chat_template.encode())
            spec = msgspec.structs.replace(spec, chat_template=str(placed))
        write_record(order_file.with_suffix(".json"), spec)


def _prepared(run: Run) -> CoordinatorSpec | WorkerSpec:
    """The spec with the model as it lies on this node. May take minutes."""
    spec = run.coordinator or run.worker
    assert spec is not None
    return msgspec.structs.replace(spec, model=model_here(spec.model, run.model_source))

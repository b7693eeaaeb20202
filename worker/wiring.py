"""From a spec to a worker process. Owns what depends on what; everything is complete when it is made."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from engine.grammar.compiler import GrammarCompiler
from engine.grammar.vocabulary import GrammarVocabulary, eos_token_ids
from engine.kv.pool_memory import KvMemory
from engine.resting import HostResting
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.transports.select import REGISTERING
from protocol.channels import Channels
from protocol.clock import ListeningClock
from protocol.ids import host_identity
from protocol.lifeline import Lifeline
from protocol.messages.reports import Hello
from worker.disk_tier import DiskTier
from worker.engine_start import MOCK_BACKEND
from worker.grammars import GrammarThread
from worker.heartbeat import HeartbeatThread
from worker.loop import Patience, WorkerLoop
from worker.outbox import Outbox
from worker.process import WorkerProcess, WorkerSockets
from worker.roads import Roads
from worker.roles import Limits, Machinery, build_roles
from worker.silence import LONGEST_LOOK_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.context import WorkerContext
    from engine.resting import Resting
    from protocol.messages.records import PeerAddress
    from protocol.specs import WorkerSpec
    from worker.engine_start import StartedEngine


def build_worker(
    spec: WorkerSpec, engine: StartedEngine, context: WorkerContext, available: Callable[[], int]
) -> WorkerProcess:
    """A worker that listens already; `run` it. `available`: bytes of this host's memory that can be taken now."""
    channels, memory = Channels(spec.keys), engine.memory
    leases = LeaseTable(ListeningClock(context.clock, LONGEST_LOOK_S))
    roads = Roads(spec, channels, memory, leases, engine.fingerprint, context)
    grammars, disk = _grammars(spec), _disk_tier(spec, engine)
    sockets = WorkerSockets(spec, channels, roads, engine, grammars, disk)
    outbox = Outbox(sockets, context)
    limits = Limits(
        num_blocks=memory.num_blocks,
        block_size=spec.block_size,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        max_num_seqs=spec.max_num_seqs,
        prefix_caching=spec.enable_prefix_caching,
    )
    address = roads.address()
    resting = _resting(engine, address, available)
    machinery = Machinery(memory, engine.runner, roads, grammars, disk, resting)
    roles = build_roles(limits, machinery, leases, outbox, context)
    lifeline = Lifeline()
    card = _card(spec, engine, address, lifeline, can_sleep=resting is not None)
    loop = WorkerLoop(
        card,
        roles,
        outbox,
        sockets,
        context,
        Patience(spec.silence_limit_s, spec.stop_grace_s),
    )
    heartbeat = HeartbeatThread(channels, spec.control, loop.heartbeat)
    return WorkerProcess(loop, sockets, heartbeat, lifeline)


def _grammars(spec: WorkerSpec) -> GrammarThread | None:
    """None for a store, and for the mock, which asks nobody what it may say. The vocabulary is read now: that keeps the interpreter busy."""
    if spec.backend == MOCK_BACKEND or not spec.role.computes:
        return None
    return GrammarThread(GrammarCompiler(vocabulary_of(spec)))


def vocabulary_of(spec: WorkerSpec) -> GrammarVocabulary:
    """Read once in a process: a standby has read it before it is a worker."""
    config = spec.model.config
    return _vocabulary(Path(spec.model.directory), config.vocab_size, config.eos_token_ids)


@cache
def _vocabulary(directory: Path, rows: int, eos: tuple[int, ...]) -> GrammarVocabulary:
    return GrammarVocabulary.from_directory(directory, rows, eos_token_ids(directory, eos))


def _disk_tier(spec: WorkerSpec, engine: StartedEngine) -> DiskTier | None:
    """None where no disk was given; StoreError where it cannot be used."""
    if not spec.store_path:
        return None
    return DiskTier.open(
        spec.store_path, spec.store_disk_bytes, engine.memory, engine.fingerprint, spec.block_size
    )


def _card(
    spec: WorkerSpec,
    engine: StartedEngine,
    address: PeerAddress,
    lifeline: Lifeline,
    *,
    can_sleep: bool,
) -> Hello:
    """How this worker introduces itself."""
    return Hello(
        worker_id=spec.worker_id,
        incarnation=address.incarnation,
        role=spec.role,
        pid=os.getpid(),
        host=socket.gethostname(),
        boot_id=host_identity(),
        fingerprint=engine.fingerprint,
        address=address,
        num_blocks=engine.memory.num_blocks,
        block_size=spec.block_size,
        max_model_len=spec.max_model_len,
        max_num_seqs=spec.max_num_seqs,
        max_num_batched_tokens=spec.max_num_batched_tokens,
        backend=engine.runner.backend,
        block_bytes=engine.memory.block_bytes,
        generation=spec.generation,
        can_sleep=can_sleep,
        lifeline_fd=lifeline.fd,
    )


def _resting(
    engine: StartedEngine, address: PeerAddress, available: Callable[[], int]
) -> Resting | None:
    """None for blocks on a GPU, and where a network card knows their pages by their physical address: those stay."""
    if not isinstance(engine.memory, KvMemory) or REGISTERING.intersection(address.transports):
        return None
    return HostResting(engine.memory, engine.mappings, available)

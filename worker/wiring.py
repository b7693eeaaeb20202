"""What a worker is made of. Owns construction and teardown; the loop is worker.process."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import zmq

from decode.role import DecodeRole
from decode.scheduler import DecodeScheduler
from engine.kv.allocation import Allocator
from engine.kv.block_pool import BlockPool
from kvtransfer.peers import PeerNetwork
from kvtransfer.promises.digest import (
    block_digest,
    digest_header,
    full_block_identity,
    partial_block_identity,
)
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.pulling.puller import Puller, PullJob
from kvtransfer.sharing.shared_prefix import BlockExchange
from kvtransfer.transport import LocalPool
from kvtransfer.transports.select import make_transports
from prefill.role import PrefillRole
from prefill.scheduler import PrefillScheduler
from protocol.addresses import TCP, tcp_endpoint
from protocol.channels import Channels
from protocol.ids import host_identity
from protocol.messages.records import PeerAddress
from protocol.messages.reports import Heartbeat, Hello
from protocol.worker_load import WorkerLoad
from worker.heartbeat import HeartbeatThread
from worker.metered_runner import MeteredRunner

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from engine.context import WorkerContext
    from engine.kv.sequence import Sequence
    from engine.runner_api import Runner
    from kvtransfer.pulling.puller import Key
    from kvtransfer.transport import BlockMemory
    from protocol.fingerprint import Fingerprint
    from protocol.messages.peers import BlockOffer
    from protocol.roles import Role
    from protocol.specs import WorkerSpec
    from worker.process import Worker, WorkerOutbox


class BlockProofs:
    """Digest headers and digests of a sequence's blocks."""

    def __init__(
        self, memory: BlockMemory, pool: BlockPool, block_size: int, context: WorkerContext
    ):
        self._memory = memory
        self._pool = pool
        self._block_size = block_size
        self._context = context

    def header(self, sequence: Sequence, index: int, generation: int, num_tokens: int) -> bytes:
        """What is hashed before block `index` of a prompt of `num_tokens` tokens."""
        if (index + 1) * self._block_size <= num_tokens:
            key = sequence.extend_keys(self._block_size, (index + 1) * self._block_size)[index]
            identity = full_block_identity(key)
        else:
            identity = partial_block_identity(sequence.request_id, sequence.attempt)
        return digest_header(self._context.fingerprint_hash, identity, index, generation)

    def cached_digests(
        self, keys: SequenceOf[bytes], first_index: int, block_ids: SequenceOf[int]
    ) -> list[bytes]:
        """See kvtransfer.sharing.shared_prefix.BlockProver."""
        fingerprint, generation = self._context.fingerprint_hash, self._pool.generation
        headers = [
            digest_header(fingerprint, full_block_identity(key), index, generation(block_id))
            for index, (key, block_id) in enumerate(zip(keys, block_ids, strict=True), first_index)
        ]
        return self._digests(headers, block_ids)

    def digests(self, sequence: Sequence, indices: SequenceOf[int]) -> list[bytes]:
        """See kvtransfer.sharing.shared_prefix.BlockProver."""
        block_ids = [sequence.block_table[index] for index in indices]
        computed, generation = sequence.num_computed_tokens, self._pool.generation
        headers = [
            self.header(sequence, index, generation(block_id), computed)
            for index, block_id in zip(indices, block_ids, strict=True)
        ]
        return self._digests(headers, block_ids)

    def _digests(self, headers: list[bytes], block_ids: SequenceOf[int]) -> list[bytes]:
        materials = self._memory.materials(block_ids) if block_ids else []
        return [block_digest(*pair) for pair in zip(headers, materials, strict=True)]


class PullingFetcher:
    """Turns announced blocks into pull jobs."""

    def __init__(self, puller: Puller, proofs: BlockProofs) -> None:
        self.puller = puller
        self._proofs = proofs

    def fetch(
        self,
        source: PeerAddress,
        lease_id: str,
        sequence: Sequence,
        first_block: int,
        offers: SequenceOf[BlockOffer],
        timeout_s: float,
    ) -> None:
        """See kvtransfer.sharing.shared_prefix.BlockFetcher."""
        indices = range(first_block, first_block + len(offers))
        num_tokens = sequence.num_tokens
        self.puller.submit(
            PullJob(
                key=sequence.key,
                source=source,
                lease_id=lease_id,
                source_ids=[offer.block_id for offer in offers],
                target_ids=[sequence.block_table[index] for index in indices],
                headers=[
                    self._proofs.header(sequence, index, offer.generation, num_tokens)
                    for index, offer in zip(indices, offers, strict=True)
                ],
                digests=[offer.digest for offer in offers],
                timeout_s=timeout_s,
            )
        )

    def cancel(self, key: Key) -> None:
        """See kvtransfer.sharing.shared_prefix.BlockFetcher."""
        self.puller.cancel(key)


class WorkerParts:
    """Pool, leases, transports, peers and puller of one worker; rebuilt in part after a fence."""

    def __init__(
        self,
        spec: WorkerSpec,
        runner: Runner,
        memory: BlockMemory,
        fingerprint: Fingerprint,
        context: WorkerContext,
    ) -> None:
        self.spec = spec
        self.runner = MeteredRunner(runner, context.clock)
        self.memory = memory
        self.fingerprint = fingerprint
        self.context = context
        self.pool = BlockPool(memory.num_blocks)
        self.leases = LeaseTable(context.clock)
        self.proofs = BlockProofs(memory, self.pool, spec.block_size, context)
        self.identity = f"{spec.worker_id}/{os.getpid()}".encode()
        self._channels = Channels(spec.keys)
        self._heartbeat: HeartbeatThread | None = None
        self._fetcher: PullingFetcher | None = None
        self._open_roads()

    def _path(self, kind: str) -> Path:
        """A short socket path in the run directory, unique to this start."""
        name = f"{self.spec.worker_id}-{self.context.incarnation[:8]}.{kind}"
        return Path(self.spec.run_directory) / name

    def _open_roads(self) -> None:
        pool = LocalPool(
            self.memory,
            self.leases,
            self.context.incarnation,
            self.context.fingerprint_hash,
        )
        self.transports = make_transports(
            self.spec.transport,
            pool,
            channels=self._channels,
            socket_path=self._path("shm"),
            peer_host=self.spec.peer_host,
            network=self.spec.kv_network,
        )
        self._servers = {name: transport.serve() for name, transport in self.transports.items()}
        self.peers = PeerNetwork(
            self._channels,
            self._peer_endpoint(),
            self.spec.worker_id,
            self.context.incarnation,
            self.fingerprint,
        )
        self.puller = Puller(self.memory, self.transports)
        if self._fetcher is not None:
            self._fetcher.puller = self.puller

    def _peer_endpoint(self) -> str:
        """On one host a unix socket; where the coordinator is reached over tcp, peers may be elsewhere."""
        if self.spec.control.startswith(TCP):
            return tcp_endpoint(self.spec.peer_host)
        return f"ipc://{self._path('peer')}"

    def _close_roads(self) -> None:
        self.puller.close()
        self.peers.close()
        for server in self._servers.values():
            server.close()
        self._path("peer").unlink(missing_ok=True)

    def restart_peers(self) -> None:
        """After a fence: the same pool under the new incarnation."""
        self._close_roads()
        self._open_roads()

    def forget_peer(self, worker_id: str) -> None:
        """A worker that we pulled from left: close the roads to it, and the mapping of its pool."""
        self.peers.forget_source(worker_id)
        self.puller.forget_peer(worker_id)

    def connect_control(self) -> zmq.Socket[bytes]:
        """The DEALER to the coordinator; it reconnects by itself."""
        control = self._channels.socket(zmq.DEALER)
        control.setsockopt(zmq.SNDHWM, 100_000)
        control.setsockopt(zmq.ROUTING_ID, self.identity)
        self._channels.connect(control, self.spec.control, "control")
        return control

    def build_roles(self, outbox: WorkerOutbox) -> tuple[PrefillRole, DecodeRole]:
        """Both roles over the one pool."""
        spec = self.spec
        allocator = Allocator(self.pool, spec.block_size, prefix_caching=spec.enable_prefix_caching)
        self.allocator = allocator
        limits = {
            "max_num_batched_tokens": spec.max_num_batched_tokens,
            "max_num_seqs": spec.max_num_seqs,
        }
        self._fetcher = PullingFetcher(self.puller, self.proofs)
        prefill = PrefillRole(
            PrefillScheduler(allocator, **limits),
            self.runner,
            BlockExchange(self.proofs, self.leases, self._fetcher),
            outbox,
            self.context,
        )
        decode = DecodeRole(
            DecodeScheduler(allocator, **limits), self.runner, self._fetcher, outbox, self.context
        )
        return prefill, decode

    def hello(self, role: Role, *, draining: bool) -> Hello:
        """How this worker introduces itself."""
        spec, incarnation = self.spec, self.context.incarnation
        host = socket.gethostname()
        return Hello(
            worker_id=spec.worker_id,
            incarnation=incarnation,
            role=role,
            pid=os.getpid(),
            host=host,
            boot_id=host_identity(),
            fingerprint=self.fingerprint,
            address=PeerAddress(
                worker_id=spec.worker_id,
                incarnation=incarnation,
                host=host,
                control=self.peers.address,
                transports={name: server.address for name, server in self._servers.items()},
            ),
            num_blocks=self.memory.num_blocks,
            block_size=spec.block_size,
            max_model_len=spec.max_model_len,
            max_num_seqs=spec.max_num_seqs,
            max_num_batched_tokens=spec.max_num_batched_tokens,
            backend=self.runner.backend,
            block_bytes=self.memory.block_bytes,
            generation=spec.generation,
            draining=draining,
        )

    def start_heartbeat(self, worker: Worker) -> None:
        """Report on `worker` from now on, once it is registered."""

        def read() -> Heartbeat | None:
            if not worker.is_registered:
                return None
            heard, live = worker.account
            return Heartbeat(
                incarnation=self.context.incarnation,
                identity=self.identity,
                step=worker.steps,
                busy=worker.busy,
                load=self.load(worker),
                heard=heard,
                live=live,
            )

        self._heartbeat = HeartbeatThread(self._channels, self.spec.control, read)
        self._heartbeat.start()

    def load(self, worker: Worker) -> WorkerLoad:
        """Numbers for the heartbeat; read from another thread, each field by itself."""
        prefill, decode, pulls = worker.prefill, worker.decode, self.puller.counters
        return WorkerLoad(
            blocks=self.pool.counts(),
            waiting=len(prefill.scheduler.waiting) + len(decode.scheduler.waiting),
            running=len(prefill.scheduler.running) + len(decode.scheduler.running),
            transferring=len(decode.scheduler.fetching),
            preemptions=decode.scheduler.num_preemptions,
            prefix_queries_tokens=self.allocator.queried_tokens,
            prefix_hits_tokens=self.allocator.hit_tokens,
            transfer_bytes=pulls.num_bytes,
            transfer_s=pulls.seconds,
            transfers=pulls.transfers,
            transfer_failures=pulls.failures,
            prefix_fetched_tokens=prefill.prefixes.fetched_blocks * self.spec.block_size,
            prefill_tokens=prefill.computed_tokens + decode.prefilled_tokens,
            decode_tokens=decode.decoded_tokens,
            dropped_messages=worker.dropped_messages
            + self.peers.dropped_messages
            + self._channels.refused,
            steps=self.runner.steps,
            step_s=self.runner.step_s,
            stepped_tokens=self.runner.stepped_tokens,
            step_sizes=list(self.runner.step_sizes),
        )

    def close(self) -> None:
        """Stop threads, close sockets, give the memory back."""
        if self._heartbeat is not None:
            self._heartbeat.close()
        self._close_roads()
        self._channels.close()

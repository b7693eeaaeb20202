"""How blocks and messages get to other workers and back. Owns the transports, peer sockets and puller of one incarnation."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvtransfer.peers import PeerNetwork
from kvtransfer.pulling.puller import Puller
from kvtransfer.transport import LocalPool
from kvtransfer.transports.select import make_transports
from protocol.addresses import TCP, tcp_endpoint
from protocol.messages.records import PeerAddress

if TYPE_CHECKING:
    from engine.context import WorkerContext
    from kvtransfer.promises.lease import LeaseTable
    from kvtransfer.pulling.pull import Key, PullJob
    from kvtransfer.transport import BlockMemory, KvServer
    from protocol.channels import Channels
    from protocol.fingerprint import Fingerprint
    from protocol.specs import WorkerSpec


@dataclass(frozen=True, slots=True)
class OpenRoads:
    """Those of one incarnation; closed as a whole."""

    servers: dict[str, KvServer]
    peers: PeerNetwork
    puller: Puller
    peer_path: Path

    def close(self) -> None:
        """End every read and connection; nothing writes into the pool any more."""
        self.puller.close()
        self.peers.close()
        for server in self.servers.values():
            server.close()
        self.peer_path.unlink(missing_ok=True)


class Roads:
    """Over one pool, for one incarnation after another. Satisfies kvtransfer.pulling.pull.Pulls."""

    def __init__(
        self,
        spec: WorkerSpec,
        channels: Channels,
        memory: BlockMemory,
        leases: LeaseTable,
        fingerprint: Fingerprint,
        context: WorkerContext,
    ) -> None:
        self._spec = spec
        self._channels = channels
        self._memory = memory
        self._leases = leases
        self._fingerprint = fingerprint
        self._context = context
        self._open = self._opened()

    @property
    def peers(self) -> PeerNetwork:
        """Connections to other workers."""
        return self._open.peers

    @property
    def puller(self) -> Puller:
        """Who reads from them."""
        return self._open.puller

    def _path(self, kind: str) -> Path:
        """A short socket path in the run directory, unique to this start."""
        name = f"{self._spec.worker_id}-{self._context.incarnation[:8]}.{kind}"
        return Path(self._spec.run_directory) / name

    def _opened(self) -> OpenRoads:
        context = self._context
        transports = make_transports(
            self._spec.transport,
            LocalPool(self._memory, self._leases, context.incarnation, context.fingerprint_hash),
            channels=self._channels,
            socket_path=self._path("shm"),
            peer_host=self._spec.peer_host if self._spec.control.startswith(TCP) else None,
            network=self._spec.kv_network,
        )
        servers = {name: transport.serve() for name, transport in transports.items()}
        peers = PeerNetwork(
            self._channels,
            self._peer_endpoint(),
            self._spec.worker_id,
            context.incarnation,
            self._fingerprint,
        )
        return OpenRoads(
            servers,
            peers,
            Puller(self._memory, transports, self._context.clock),
            self._path("peer"),
        )

    def _peer_endpoint(self) -> str:
        """On one host a unix socket; where the coordinator is reached over tcp, peers may be elsewhere."""
        if self._spec.control.startswith(TCP):
            return tcp_endpoint(self._spec.peer_host)
        return f"ipc://{self._path('peer')}"

    def address(self) -> PeerAddress:
        """Where other workers reach this incarnation."""
        return PeerAddress(
            worker_id=self._spec.worker_id,
            incarnation=self._context.incarnation,
            host=socket.gethostname(),
            control=self.peers.address,
            transports={name: server.address for name, server in self._open.servers.items()},
        )

    def submit(self, job: PullJob) -> None:
        """See Pulls."""
        self.puller.submit(job)

    def cancel(self, key: Key) -> None:
        """See Pulls."""
        self.puller.cancel(key)

    def forget_peer(self, worker_id: str) -> None:
        """A worker that we pulled from left: close the roads to it, and the mapping of its pool."""
        self.peers.forget_source(worker_id)
        self.puller.forget_peer(worker_id)

    def restart(self) -> None:
        """After a fence: the same pool under the new incarnation."""
        self._open.close()
        self._open = self._opened()

    def close(self) -> None:
        """For good."""
        self._open.close()

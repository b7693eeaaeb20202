"""A reader of a worker's cached blocks that is no worker itself: it keeps its lease for as long as a test wants."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import zmq

from deploy.config.topology import cache_directory
from deploy.host.model_source import prepare
from engine.attesting import SLOT_BYTES
from engine.checkpoints.prepared import fingerprint
from engine.kv.pool_memory import KvMemory
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.promises.proofs import digest_header, full_block_identity
from kvtransfer.pulling.puller import Puller, PullJob
from kvtransfer.transport import LocalPool
from kvtransfer.transports.shm import ShmTransport
from protocol import wire
from protocol.clock import SystemClock
from protocol.content_keys import block_keys, root_key
from protocol.ids import files_identity
from protocol.messages.peers import Found, Lookup, PeerHello, PeerMessage, Pulled
from protocol.messages.records import PeerAddress

BLOCK_SIZE = 16
REQUEST = ("lone", 1)
TIMEOUT_MS = 5000


class LoneReader:
    """`with LoneReader(worker of GET /cluster, directory) as reader:`; speaks the protocol between workers."""

    def __init__(self, worker: dict[str, Any], directory: Path) -> None:
        prepared = prepare("smollm2-135m", (), "float32", cache_directory(), lambda *_: None)
        self.fingerprint = fingerprint(Path(prepared.directory), BLOCK_SIZE)
        spec = Path(f"/proc/{worker['pid']}/cmdline").read_bytes().split(b"\0")[4].decode()
        stem = Path(spec).parent / f"{worker['id']}-{worker['incarnation'][:8]}"
        self.address = PeerAddress(
            worker_id=worker["id"],
            incarnation=worker["incarnation"],
            host="",
            control=f"ipc://{stem}.peer",
            transports={"shm": f"{stem}.shm@{files_identity()}"},
        )
        self._directory = directory
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        self._socket.connect(self.address.control)
        hello = PeerHello(worker_id="lone", incarnation="lone", fingerprint=self.fingerprint)
        self._socket.send(wire.encode(hello))
        self._decoder: wire.Decoder[PeerMessage] = wire.Decoder(PeerMessage)
        self._keys: list[bytes] = []
        self._found: Found | None = None

    def borrow(self, prompt: list[int]) -> int:
        """Lease the full blocks of a prompt; how many there are."""
        root = root_key(self.fingerprint.hash_bytes())
        self._keys = block_keys(root, prompt, BLOCK_SIZE)
        request_id, attempt = REQUEST
        asked = Lookup(
            incarnation="lone",
            request_id=request_id,
            attempt=attempt,
            first_block=0,
            keys=self._keys,
        )
        self._socket.send(wire.encode(asked))
        while not isinstance(message := self._decoder.decode(self._socket.recv()), Found):
            continue
        self._found = message
        return len(message.offers)

    def read(self) -> str | None:
        """Pull the leased blocks and prove each; the error, or None when all bytes are right."""
        assert self._found is not None
        offers = self._found.offers
        memory = KvMemory(len(offers), BLOCK_SIZE * SLOT_BYTES)
        meaning = self.fingerprint.hash_bytes()
        pool = LocalPool(memory, LeaseTable(SystemClock()), "lone", meaning)
        puller = Puller(
            memory, {"shm": ShmTransport(pool, self._directory / "lone.shm")}, SystemClock()
        )
        puller.submit(
            PullJob(
                key=REQUEST,
                source=self.address,
                lease_id=self._found.lease_id,
                source_ids=[offer.block_id for offer in offers],
                target_ids=list(range(len(offers))),
                headers=[
                    digest_header(meaning, full_block_identity(key), index, offer.generation)
                    for index, (key, offer) in enumerate(zip(self._keys, offers, strict=False))
                ],
                digests=[offer.digest for offer in offers],
            )
        )
        poller = zmq.Poller()
        poller.register(puller.fileno(), zmq.POLLIN)
        assert poller.poll(TIMEOUT_MS), "the read did not end"
        (done,) = puller.poll()
        puller.close()
        return None if done.error is None else str(done.error)

    def give_back(self) -> None:
        """End the lease."""
        request_id, attempt = REQUEST
        pulled = Pulled(incarnation="lone", request_id=request_id, attempt=attempt)
        self._socket.send(wire.encode(pulled))

    def __enter__(self) -> LoneReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
        self._context.term()

"""Both ends of a pull for the conformance suite: a source, in its own process or not, and a reader."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

from engine.kv.block_pool import BlockPool, Hold
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.promises.proofs import block_digest, digest_header, full_block_identity
from kvtransfer.pulling.puller import PullDone, Puller, PullJob
from kvtransfer.transport import KvServer, LocalPool, Transport
from kvtransfer.transports.inprocess import Directory, InProcessTransport
from kvtransfer.transports.select import make_transports
from protocol.channels import Channels
from protocol.clock import SystemClock
from protocol.messages.records import PeerAddress
from tests.e2e.transport_peer import Source, content, material, new_memory
from tests.patience import is_readable

ROOT = Path(__file__).parents[2]
FINGERPRINT = b"f" * 32
DIRECTORY = Directory()
RESULT_TIMEOUT_S = 60.0


class Peer:
    """A source of blocks: what a test may ask of it and do to it."""

    address: PeerAddress

    def __init__(self, transport: str, run_directory: Path, **overrides) -> None:
        self.spec = {
            "transport": transport,
            "run_directory": str(run_directory),
            "incarnation": secrets.token_hex(8),
            "num_blocks": 64,
            "block_bytes": 4096,
            "seed": 1,
            "fingerprint": FINGERPRINT.hex(),
            "address": "",
            "memory": "host",
            **overrides,
        }
        self.name = "prefill-0"

    def address_at(self, address: str) -> PeerAddress:
        return PeerAddress(
            worker_id=self.name,
            incarnation=self.spec["incarnation"],
            host="localhost",
            control="",
            transports={self.spec["transport"]: address},
        )

    def do(self, *command):
        """One command of tests.e2e.transport_peer.Source."""
        raise NotImplementedError

    def kill(self) -> None:
        """End it as SIGKILL does."""
        raise NotImplementedError

    def stop(self) -> None:
        """As SIGSTOP does."""
        raise NotImplementedError

    def resume(self) -> None:
        """As SIGCONT does."""
        raise NotImplementedError

    def close(self) -> None:
        """Give everything back."""
        raise NotImplementedError

    def content(self, block_id: int) -> bytes:
        return content(self.spec["seed"], block_id, self.spec["block_bytes"])


class ProcessPeer(Peer):
    """The source in a process of its own."""

    def __init__(self, transport: str, run_directory: Path, **overrides) -> None:
        super().__init__(transport, run_directory, **overrides)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.transport_peer", json.dumps(self.spec)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = self.address_at(self._reply())

    def _reply(self):
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise AssertionError("the peer process ended")

    def do(self, *command):
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._reply()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def last_words(self) -> str:
        """What a process that ended had printed and nobody had read: UCX prints there too."""
        assert self.process.stdout is not None
        return self.process.stdout.read()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


class LocalPeer(Peer):
    """The source in this process; killed by leaving the directory."""

    def __init__(self, transport: str, run_directory: Path, **overrides) -> None:
        super().__init__(transport, run_directory, **overrides)
        self.source = Source(self.spec, self._serve)
        self.address = self.address_at(self.source.server.address)

    def _serve(self, source: Source) -> KvServer:
        address = self.spec["address"] or self.spec["incarnation"]
        return InProcessTransport(DIRECTORY, address, source.local_pool).serve()

    def do(self, *command):
        verb, *arguments = command
        return self.source.do(verb, arguments)

    def kill(self) -> None:
        self.source.server.close()

    def close(self) -> None:
        self.source.server.close()


def start_peer(transport: str, run_directory: Path, **overrides) -> Peer:
    kind = LocalPeer if transport == "inprocess" else ProcessPeer
    return kind(transport, run_directory, **overrides)


class Reader:
    """A pool that pulls, with the rule that blocks are freed when the result has come."""

    def __init__(
        self,
        transport: str,
        run_directory: Path,
        num_blocks: int,
        block_bytes: int = 4096,
        memory: str = "host",
    ) -> None:
        self.memory = new_memory(memory, num_blocks, block_bytes)
        self.pool = BlockPool(num_blocks)
        channels = Channels()
        self.channels = channels
        self.context = channels.context
        local = LocalPool(self.memory, LeaseTable(SystemClock()), "reader", FINGERPRINT)
        self.transports: dict[str, Transport]
        if transport == "inprocess":
            self.transports = {transport: InProcessTransport(DIRECTORY, "reader", local)}
        else:
            self.transports = make_transports(
                transport,
                local,
                channels=channels,
                socket_path=run_directory / "reader.shm",
                peer_host="127.0.0.1",
            )
        self.puller = Puller(self.memory, self.transports, SystemClock())
        self.holds: dict[tuple[str, int], Hold] = {}
        self.number = 0

    def job(self, peer: Peer, source_ids: list[int], lease_id: str = "lease", **overrides):
        """Submit a pull of these blocks of `peer` into newly allocated ones."""
        self.number += 1
        key = (f"request-{self.number}", 0)
        hold = self.pool.allocate(len(source_ids), f"pull:{key[0]}")
        assert hold is not None
        self.holds[key] = hold
        headers = [
            digest_header(FINGERPRINT, full_block_identity(b"%d" % i), i, 1) for i in source_ids
        ]
        digests = [
            block_digest(header, material(self.memory.kind, peer.content(i)))
            for header, i in zip(headers, source_ids, strict=True)
        ]
        job = PullJob(
            key=key,
            source=overrides.pop("address", peer.address),
            lease_id=lease_id,
            source_ids=source_ids,
            target_ids=list(hold.block_ids),
            headers=headers,
            digests=digests,
            **overrides,
        )
        self.puller.submit(job)
        return job

    def results(self, count: int = 1) -> list[PullDone]:
        """The next `count` results; waits for the puller's descriptor, and for nothing else."""
        done: list[PullDone] = []
        while len(done) < count:
            ready = is_readable(self.puller.fileno(), RESULT_TIMEOUT_S)
            assert ready, "a pull did not end"
            done += self.puller.poll()
        return done

    def finish(self, done: PullDone, peer: Peer) -> None:
        """What the engine does with a result: adopt or drop; either way the blocks come back."""
        job = done.job
        if done.error is None:
            for source, target in zip(job.source_ids, job.target_ids, strict=True):
                assert self.memory.readable(target, 1) == peer.content(source)
        self.holds.pop(job.key).release()

    def pull(self, peer: Peer, source_ids: list[int], **overrides) -> PullDone:
        """One pull from start to end."""
        self.job(peer, source_ids, **overrides)
        (done,) = self.results()
        self.finish(done, peer)
        return done

    def close(self) -> None:
        self.puller.close()
        counts = self.pool.counts()
        assert counts.free == counts.total
        assert self.pool.is_balanced()
        self.channels.close()
        self.context.destroy(linger=0)

"""Pulls over ucx or nixl whose TCP connections pass a proxy that breaks them once. Prints what came of it as JSON.

usage: LD_PRELOAD=tcp_detour.so BATON_DETOUR=directory python -m tests.e2e.detoured_pull ucx '{"cut_at": 5000000}'

UCX picks its own connections, below the sight of an address in a message, so `tcp_detour.c` leads them here. A
process of its own, since a library is preloaded at the start of one, and since a crash must fail a test, not end all.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.fault_proxy import Fault, FaultProxy, Way
from tests.e2e.transport_rig import ProcessPeer, Reader

NUM_BLOCKS, BLOCK_BYTES = 32, 256 << 10
TIMEOUT_S = 3.0
WHOLE_S = 30.0
"""What a pull may take that nothing breaks, however slow the machine is."""
_LISTEN = "0A"


class Detour(FaultProxy):
    """A proxy for connections that `tcp_detour.c` announces."""

    def __init__(self, directory: Path, fault: Fault) -> None:
        super().__init__(("127.0.0.1", 0), fault)
        self._directory = directory
        self.connections = 0
        (directory / "proxy").write_text(f"{self.port}")

    def way(self, port: int) -> Way:
        """As announced under the port that the connection came from. NIXL connects to itself as well."""
        pid, meant = (int(word) for word in (self._directory / f"{port}").read_text().split())
        is_from_source = pid != os.getpid()
        is_between = is_from_source == listens_here(meant)
        self.connections += is_between
        return Way(("127.0.0.1", meant), is_from_source, is_between)


def listens_here(port: int) -> bool:
    """Whether it is the reader's process, this one, that listens on a port of an IPv4 address."""
    rows = [row.split() for row in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    inodes = {row[9] for row in rows if row[3] == _LISTEN and int(row[1][-4:], 16) == port}
    return not inodes.isdisjoint(sockets_here())


def sockets_here() -> Iterator[str]:
    """The inodes of this process's sockets."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            name = f"{entry.readlink()}"
            if name.startswith("socket:["):
                yield name[8:-1]


def pull(reader: Reader, peer: ProcessPeer, timeout_s: float = WHOLE_S) -> dict[str, object]:
    """One pull of all blocks: the class of its error, and how long it took."""
    start_s = time.perf_counter()
    done = reader.pull(peer, list(range(NUM_BLOCKS)), timeout_s=timeout_s)
    return {
        "error": done.error and type(done.error).__name__,
        "text": f"{done.error}",
        "seconds": time.perf_counter() - start_s,
    }


def main() -> None:
    road, fault = sys.argv[1], Fault(**json.loads(sys.argv[2]))
    directory = Path(os.environ["BATON_DETOUR"])
    proxy = Detour(directory, fault)
    peer = ProcessPeer(road, directory, num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES)
    peer.do("lease", "lease", list(range(NUM_BLOCKS)))
    reader = Reader(road, directory, NUM_BLOCKS, BLOCK_BYTES)
    ends = fault.cut_at is not None or fault.stall_at is not None
    broken = pull(reader, peer, TIMEOUT_S if ends else WHOLE_S)
    told = {"broken": broken, "did": proxy.did.is_set(), "connections": proxy.connections}
    proxy.fault = Fault()
    proxy.break_connections()
    told["healed"] = healed = pull(reader, peer)
    told["healed_at_once"] = healed["error"] is None
    if (
        healed["error"] == "PeerLost"
    ):  # UCX had begun anew by itself, on a connection that was broken just now
        told["healed"] = pull(reader, peer)
    told["connections_after"] = proxy.connections
    told["source_ended"] = peer.process.poll()
    if told["source_ended"] is not None:
        print(peer.last_words(), file=sys.stderr)
    told["unharmed"] = told["source_ended"] is None and peer.do("is_unharmed")
    reader.close()
    peer.close()
    proxy.close()
    print("@" + json.dumps(told), flush=True)


if __name__ == "__main__":
    main()

"""A reader in a process of its own, to be stopped in the middle of its read. Prints what came of it as JSON.

usage: python -m tests.e2e.paused_reader '{"directory": …, "incarnation": …, "address": …, "num_blocks": …, "block_bytes": …}'
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.e2e.transport_rig import Peer, Reader


def main() -> None:
    told = json.loads(sys.argv[1])
    directory, num_blocks, block_bytes = (
        Path(told["directory"]),
        told["num_blocks"],
        told["block_bytes"],
    )
    peer = Peer(
        "zmq",
        directory,
        incarnation=told["incarnation"],
        num_blocks=num_blocks,
        block_bytes=block_bytes,
    )
    peer.address = peer.address_at(told["address"])
    reader = Reader("zmq", directory, num_blocks, block_bytes)
    done = reader.pull(peer, list(range(num_blocks)))
    reader.close()
    print(json.dumps({"error": None if done.error is None else repr(done.error)}), flush=True)


if __name__ == "__main__":
    main()

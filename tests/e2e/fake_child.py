"""A child for launcher tests: does what `$BATON_TEST_BEHAVIOUR/<name>` says, and writes down what it hears.

usage: python -m tests.e2e.fake_child SPEC_FILE --parent PID [--ready-fd N]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

import zmq

from deploy.processes.child import end_by_interrupt, follow_parent


def coordinate(endpoint: str, ready_fd: int, journal: Path) -> None:
    """Say ready, then write every message into the journal, and answer with the orders in the file beside it
    (one a line, in hex) that were not sent yet."""
    socket = zmq.Context().socket(zmq.ROUTER)
    socket.bind(endpoint)
    os.write(ready_fd, b'ready {"backend": "fake"}\n')
    os.close(ready_fd)
    orders, sent = journal.with_name("orders"), 0
    while True:
        identity, frame = socket.recv_multipart()
        with journal.open("ab") as file:
            file.write(frame.replace(b"\n", b" ") + b"\n")
        lines = orders.read_text().splitlines() if orders.exists() else []
        for line in lines[sent:]:
            socket.send_multipart([identity, bytes.fromhex(line)])
        sent = len(lines)


def main() -> None:
    """Until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser()
    parser.add_argument("spec", type=Path)
    parser.add_argument("--parent", type=int)
    parser.add_argument("--ready-fd", type=int)
    arguments = parser.parse_args()
    follow_parent(arguments.parent)
    end_by_interrupt()
    name = arguments.spec.stem
    directory = Path(os.environ["BATON_TEST_BEHAVIOUR"])
    behaviour = directory / name
    wanted = behaviour.read_text() if behaviour.exists() else ""
    if wanted == "refuse":
        print("block size 3 is odd", flush=True)
        sys.exit(2)
    if wanted == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    print(f"{name} runs", flush=True)
    if arguments.ready_fd is not None and wanted != "mute":
        spec = json.loads(arguments.spec.read_bytes())
        coordinate(spec["control"], arguments.ready_fd, directory / "journal")
    signal.pause()


if __name__ == "__main__":
    main()

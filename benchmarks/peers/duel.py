"""Baton against a peer on the same cores in one run. Owns starting both servers and keeping the result.

usage: python -m benchmarks.peers.duel --peers ../shared/peers [--pd 1p1d] [--repeats 3] [--loads IN:OUT:NUM:RATE:CONC,…] [--out FILE]

Starts `baton serve` and the peers' vLLM server on the same two cores, waits until both are ready, runs the peers'
duel.py (the same seeded loads against each, alternating) and writes figures, ratios, environment and command.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.environment import environment
from benchmarks.servers import await_ready, end, start

BATON_PORT, PEER_PORT = 8311, 8312


def main() -> int:
    """Prints the table of duel.py and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--pd", default="1p1d")
    parser.add_argument("--repeats", default="3")
    parser.add_argument("--loads", default="512:64:8:inf:1,512:64:32:inf:8")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    baton = Path(sys.executable).parent / "baton"
    ours_url, peer_url = f"http://127.0.0.1:{BATON_PORT}", f"http://127.0.0.1:{PEER_PORT}"
    stamp = environment()
    serve = [str(baton), "serve", "--pd", arguments.pd, "--dtype", "bfloat16"]
    ours = start(
        [*serve, "--served-model-name", "smol", "--port", str(BATON_PORT)],
        Path("/tmp/duel-baton.log"),
    )
    ours_ready_s = await_ready(ours_url, ours)
    peer = start(
        [str(arguments.peers / "vllm_serve.sh"), str(PEER_PORT), "0-1"], Path("/tmp/duel-peer.log")
    )
    try:
        peer_ready_s = await_ready(peer_url, peer)
        command = [sys.executable, str(arguments.peers / "duel.py"), ours_url, peer_url]
        command += ["--repeats", arguments.repeats, "--loads", arguments.loads]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    finally:
        end(ours)
        end(peer)
    print(done.stdout)
    done.check_returncode()
    result = {
        "command": f"python -m benchmarks.peers.duel {' '.join(sys.argv[1:])}",
        "environment": stamp,
        "a": f"baton serve --pd {arguments.pd} --dtype bfloat16",
        "b": "vLLM 0.32 CPU, one process on both cores, bfloat16",
        "ready_after_s": {"a": round(ours_ready_s, 2), "b": round(peer_ready_s, 2)},
        "rows": json.loads(done.stdout.splitlines()[-1]),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

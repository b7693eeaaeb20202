"""`baton bench kv`: how fast KV blocks move between two processes, each transport, digest included.

For each model and transport, in turn and in the same run: a pull through the production puller, a
plain memcpy of the same bytes into shared memory, and the library below the transport doing the same
work bare (no lease, no digest). Then, over shm and zmq, how long a stream pauses where its request changes
workers. Prints a table, writes a plot, and ends with one line of JSON.
"""

from __future__ import annotations

import json
import random
import select
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.environment import environment
from benchmarks.kv.bare import COPIES, BareNixl, BareUcx, BareZmq
from benchmarks.kv.handover_gap import Handover, measure_handover, serve_and_measure
from benchmarks.kv.plot import write_plot
from benchmarks.kv.source import FINGERPRINT, INCARNATION, header
from deploy.config.parser import Parser, typed
from deploy.config.values import whole
from engine.kv.pool_memory import KvMemory
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.pulling.puller import Puller, PullJob
from kvtransfer.transport import LocalPool
from kvtransfer.transports.select import make_transports, usable
from protocol.channels import Channels
from protocol.clock import SystemClock
from protocol.messages.records import PeerAddress

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
BLOCK_TOKENS = 16
GAP_TRANSPORTS = ("shm", "zmq")
WARM_UPS = COPIES + 1
SERVED = "smollm2-135m"
"""The embedded model, which the handover is measured with."""


@dataclass(frozen=True)
class Model:
    """What a prompt's KV looks like. `peer_pieces_per_block` is the layout with a tensor a layer."""

    name: str
    bytes_per_token: int
    layers: int

    @property
    def block_bytes(self) -> int:
        return self.bytes_per_token * BLOCK_TOKENS


MODELS = {
    "smollm2-135m": Model("smollm2-135m", 23_040, 30),
    "8b": Model("8b", 131_072, 32),
}


@dataclass
class Result:
    """Rates of one transport and one model, in GB/s (10⁹), a figure a repeat."""

    transport: str
    model: str
    num_bytes: int
    pieces: int
    pull: list[float] = field(default_factory=list)
    memcpy: list[float] = field(default_factory=list)
    library: list[float] = field(default_factory=list)
    digest_s: list[float] = field(default_factory=list)
    peer: dict[str, float | None] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """One entry of the JSON line."""
        return {
            "transport": self.transport,
            "model": self.model,
            "bytes": self.num_bytes,
            "pieces": self.pieces,
            "gb_per_s": _median(self.pull),
            "best_gb_per_s": round(max(self.pull), 3),
            "memcpy_gb_per_s": _median(self.memcpy),
            "best_memcpy_gb_per_s": round(max(self.memcpy), 3),
            "library_gb_per_s": _median(self.library),
            "of_memcpy": _median_ratio(self.pull, self.memcpy),
            "of_library": _median_ratio(self.pull, self.library),
            "digest_ms": _median([seconds * 1e3 for seconds in self.digest_s]),
            "peer": self.peer,
        }


def _median(values: list[float]) -> float | None:
    return round(statistics.median(values), 3) if values else None


def _median_ratio(ours: list[float], theirs: list[float]) -> float | None:
    """Median of the ratios of neighbours in time: load that comes and goes hits both."""
    return _median([a / b for a, b in zip(ours, theirs, strict=True)]) if theirs else None


class SourceProcess:
    """benchmarks.kv.source in a process of its own."""

    def __init__(self, *spec: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.kv.source", json.dumps(spec)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *request: object):
        """One command and its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError("the source process ended")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Bench:
    """One transport and one model: both ends, and what to compare with."""

    def __init__(self, transport: str, model: Model, tokens: int, directory: str) -> None:
        self.transport = transport
        self.per_prompt = -(-tokens // BLOCK_TOKENS)
        num_blocks = self.per_prompt * COPIES
        self.memory = KvMemory(num_blocks, model.block_bytes)
        channels = Channels()
        self.channels = channels
        self.context = channels.context
        self.source = SourceProcess(transport, directory, num_blocks, model.block_bytes)
        address = PeerAddress(
            worker_id="source",
            incarnation=INCARNATION,
            host="localhost",
            control="",
            transports={transport: self.source.ask("address")},
        )
        self.address = address
        self.digests = [bytes.fromhex(digest) for digest in self.source.ask("digests")]
        local = LocalPool(self.memory, LeaseTable(SystemClock()), "bench-reader", FINGERPRINT)
        transports = make_transports(
            transport,
            local,
            channels=channels,
            socket_path=Path(directory) / "reader.shm",
            peer_host="127.0.0.1",
        )
        self.puller = Puller(self.memory, transports, SystemClock())
        self.target = np.frombuffer(self.memory.buffer, dtype=np.uint8)
        self.plain = np.ones(self.memory.size_bytes, dtype=np.uint8)
        self.size = self.per_prompt * model.block_bytes
        self.result = Result(transport, model.name, self.size, self.per_prompt)
        choose = random.Random(11)
        self.prompts = [
            choose.sample(range(i * self.per_prompt, (i + 1) * self.per_prompt), self.per_prompt)
            for i in range(COPIES)
        ]

    def pull(self, repeat: int) -> float:
        """A pull through the puller: submit to verified."""
        source_ids = self.prompts[repeat % COPIES]
        target_ids = self.prompts[(repeat + 1) % COPIES]
        job = PullJob(
            key=(f"bench-{repeat}", 0),
            source=self.address,
            lease_id="bench",
            source_ids=source_ids,
            target_ids=target_ids,
            headers=[header(i) for i in source_ids],
            digests=[self.digests[i] for i in source_ids],
        )
        start_s = time.perf_counter()
        self.puller.submit(job)
        select.select([self.puller], [], [])
        (done,) = self.puller.poll()
        seconds = time.perf_counter() - start_s
        if done.error is not None:
            raise done.error
        self.result.digest_s.append(done.digest_s)
        return self.size / seconds / 1e9

    def memcpy(self, repeat: int) -> float:
        """One copy of a prompt's bytes from ordinary memory into shared memory.

        Into the slot that was written longest ago: the one the pull just wrote lies in the cache."""
        ours, theirs = (repeat % COPIES) * self.size, ((repeat + 3) % COPIES) * self.size
        start_s = time.perf_counter()
        np.copyto(self.target[theirs : theirs + self.size], self.plain[ours : ours + self.size])
        return self.size / (time.perf_counter() - start_s) / 1e9

    def close(self) -> None:
        self.puller.close()
        self.source.close()
        self.channels.close()
        self.context.destroy(linger=0)


def measure(transport: str, model: Model, tokens: int, repeats: int) -> Result:
    """All figures of one transport and one model, alternating, after warm-ups that touch all memory once."""
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(transport, model, tokens, directory)
        bares: dict[str, Callable[[], BareZmq | BareNixl | BareUcx]] = {
            "zmq": lambda: BareZmq(bench),
            "nixl": lambda: BareNixl(bench),
            "ucx": lambda: BareUcx(bench),
        }
        bare = bares[transport]() if transport in bares else None
        result = bench.result
        try:
            for repeat in range(repeats + WARM_UPS):
                result.pull.append(bench.pull(repeat))
                result.memcpy.append(bench.memcpy(repeat))
                if bare is not None:
                    result.library.append(bare.run(repeat))
        finally:
            if isinstance(bare, BareNixl):
                bare.close()
            bench.close()
    for figures in (result.pull, result.memcpy, result.library, result.digest_s):
        del figures[:WARM_UPS]
    return result


def peers(script: Path, home: Path, model: Model, tokens: int) -> dict[str, float | None]:
    """NIXL and Mooncake moving the same bytes, a piece a layer and block, as they lay KV out."""
    python = home / "transfer" / "bin" / "python"
    if not python.is_file():
        print(f"no peers to compare with: {script.parent}/setup.sh installs them", file=sys.stderr)
        return dict.fromkeys(("nixl", "mooncake"))
    pieces = model.layers * -(-tokens // BLOCK_TOKENS)
    piece_bytes = model.block_bytes // model.layers
    command = [str(python), str(script), "--pieces", str(pieces), "--piece-bytes", str(piece_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        print(f"{script}: ended with status {done.returncode}, no figures", file=sys.stderr)
        return {"nixl": None, "mooncake": None}
    figures = json.loads(lines[-1])
    for name in ("nixl", "mooncake"):
        if not isinstance(figures[name], float):
            print(f"{name}: {figures[name]}", file=sys.stderr)
    return {
        name: figures[name] if isinstance(figures[name], float) else None
        for name in ("nixl", "mooncake")
    }


def show(results: list[Result]) -> None:
    """The table."""
    columns = ("transport", "model", "MB", "GB/s", "of memcpy", "of library", "NIXL", "Mooncake")
    print("".join(f"{name:>14}" for name in columns))
    for result in results:
        entry = result.as_json()
        row = (
            result.transport,
            result.model,
            f"{result.num_bytes / 1e6:.1f}",
            _text(entry["gb_per_s"]),
            _text(entry["of_memcpy"]),
            _text(entry["of_library"]),
            _text(result.peer.get("nixl")),
            _text(result.peer.get("mooncake")),
        )
        print("".join(f"{value:>14}" for value in row))


def _text(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else "-"


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="baton bench kv", description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False
    )
    works = [name for name, reason in usable().items() if reason is None]
    parser.add_argument("--transport", action="append", choices=works, help="default: all usable")
    parser.add_argument("--model", action="append", choices=list(MODELS), help="default: all")
    parser.add_argument(
        "--tokens", type=typed(whole(1, 1 << 20)), default=512, help="length of the prompt"
    )
    parser.add_argument("--repeats", type=typed(whole(1, 10_000)), default=15)
    parser.add_argument("--plot", type=Path, default=Path("kv_transfer.svg"), help="SVG to write")
    parser.add_argument(
        "--peers", type=Path, default=_peers(), help="directory with transfer_peers.py;  for none"
    )
    parser.add_argument("--peers-home", type=Path, default=Path.home() / ".cache/baton-peers")
    parser.add_argument(
        "--url",
        action="append",
        default=[],
        metavar="TRANSPORT=URL",
        help="measure the handover gap of this running, idle server; default: of servers started for it",
    )
    parser.add_argument("--no-handover", action="store_true", help="leave the handover gap out")
    arguments = parser.parse_args(argv)
    arguments.transport = arguments.transport or works
    arguments.model = arguments.model or list(MODELS)
    return arguments


def _peers() -> Path | None:
    """Where the peers' script lies beside a clone of this repository."""
    beside = ROOT.parent / "shared" / "peers"
    return beside if (beside / "transfer_peers.py").is_file() else None


def handovers(urls: list[str]) -> dict[str, Handover]:
    """By transport: of the servers named, or of one started for each transport."""
    if not urls:
        return {name: serve_and_measure(name) for name in GAP_TRANSPORTS}
    named = dict(url.partition("=")[::2] for url in urls)
    return {name: measure_handover(url) for name, url in named.items()}


def digest_share(results: list[Result], handover: Handover | None) -> float | None:
    """Digest time of both ends as a share of the time to first token, shm, the model that was served."""
    of_reader = [r.digest_s for r in results if (r.transport, r.model) == ("shm", SERVED)]
    if not of_reader or handover is None:
        return None
    both_ends_ms = 2 * statistics.median(of_reader[0]) * 1e3  # the same bytes hashed on each
    return round(both_ends_ms / handover.ttft_ms, 5)


def main(argv: list[str]) -> int:
    """Run and print; 0 when every transfer was right."""
    arguments = _arguments(argv)
    stamp = environment()
    results: list[Result] = []
    for name in arguments.model:
        model = MODELS[name]
        peer: dict[str, float | None] = {}
        if arguments.peers is not None and arguments.peers.name:
            script = arguments.peers / "transfer_peers.py"
            peer = peers(script, arguments.peers_home, model, arguments.tokens)
        for transport in arguments.transport:
            results.append(measure(transport, model, arguments.tokens, arguments.repeats))
            results[-1].peer = peer
    show(results)
    write_plot(arguments.plot, [result.as_json() for result in results])
    print(f"plot: {arguments.plot}")
    measured = {} if arguments.no_handover else handovers(arguments.url)
    gaps = {name: measured[name].gap_ms if name in measured else None for name in GAP_TRANSPORTS}
    report = {
        "environment": stamp,
        "transfers": [result.as_json() for result in results],
        "handover_gap_ms": gaps,
        "ttft_ms": {name: handover.ttft_ms for name, handover in measured.items()},
        "digest_share_of_ttft": digest_share(results, measured.get("shm")),
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A network that cuts, resets, stalls, delays and corrupts, between a reader and its source over ucx and nixl.

UCX picks its own TCP connections. A preloaded library leads them through the proxy, see `detoured_pull.py`.
Flipped bits are payload's: UCX trusts TCP with its own framing, and ends the process when that is broken.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from kvtransfer.transports.select import usable
from tests.e2e.detoured_pull import TIMEOUT_S
from tests.e2e.fault_proxy import Fault
from tests.marks import deep
from tests.patience import PATIENCE_S

COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nixl,
    pytest.mark.skipif(COMPILER is None, reason="no C compiler for the detour"),
]
HERE = Path(__file__).parent
MARGIN_S = 20.0
"""A machine that has more to do; without its timeout a pull would wait for a minute."""
UCX_DIED = {
    -signal.SIGABRT: r"\.(?:c|inl):\d+\s+(?:Fatal: |Assertion )",
    -signal.SIGSEGV: r"Current thread [^\n]+\n  (?:File \"[^\n]*/nixl|<no Python frame>)",
}
"""How the log tells that it was UCX: by its own last message, or by where Python stood when it crashed."""
CUTS = [
    deep(Fault(cut_at=0)),
    deep(Fault(cut_at=0, reset=True)),
    deep(Fault(cut_at=200)),
    deep(Fault(cut_at=200, reset=True)),
    deep(Fault(cut_at=5_000_000)),
    Fault(cut_at=5_000_000, reset=True),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("detour") / "tcp_detour.so"
    assert COMPILER is not None
    command = [
        COMPILER,
        "-shared",
        "-fPIC",
        "-O1",
        "-o",
        str(path),
        str(HERE / "tcp_detour.c"),
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return path


@pytest.fixture(params=["ucx", deep("nixl")])
def detoured(request, library, tmp_path):
    """detoured(fault): what a pull over this road came to, and one after it."""
    reason = usable()[request.param]
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")

    def run(fault):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.e2e.detoured_pull",
                request.param,
                json.dumps(asdict(fault)),
            ],
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            check=False,
            cwd=HERE.parents[1],
            env={
                **os.environ,
                "PYTHONFAULTHANDLER": "1",
                "UCX_TLS": "tcp,self",
                "LD_PRELOAD": str(library),
                "BATON_DETOUR": str(tmp_path),
            },
        )
        told = [line[1:] for line in done.stdout.splitlines() if line.startswith("@")]
        assert told, done.stdout + done.stderr
        found = json.loads(told[-1]) | {"road": request.param, "log": done.stdout + done.stderr}
        assert found["connections"], "no connection passed the proxy"
        return found

    return run


def check_source(found):
    """It is unharmed and serves on, in two tries at most; or, over NIXL, the library ended its process, see
    docs/failure-modes.md."""
    if found["source_ended"] is None:
        assert found["unharmed"]
        assert found["healed"]["error"] is None, json.dumps(found, indent=1)
    else:
        assert found["road"] == "nixl"
        assert found["source_ended"] in UCX_DIED, found["log"][-4000:]
        assert re.search(UCX_DIED[found["source_ended"]], found["log"]), found["log"][-4000:]
        assert found["healed"]["error"] == "PeerLost"


def test_no_fault_and_a_connection_that_broke_while_idle(detoured):
    """The second pull is right at its first try, over connections made since."""
    found = detoured(Fault())
    assert found["broken"]["error"] is None
    assert found["healed_at_once"], found
    assert found["connections_after"] > found["connections"]
    check_source(found)


@pytest.mark.parametrize("fault", CUTS, ids=repr)
def test_a_cut_connection_is_named_and_the_road_heals(detoured, fault):
    found = detoured(fault)
    assert found["did"]
    assert found["broken"]["error"] == "PeerLost"
    assert found["broken"]["seconds"] < TIMEOUT_S + MARGIN_S
    check_source(found)


@pytest.mark.parametrize("at", [3_000_000, deep(5_500_000)])
def test_a_flipped_payload_bit_is_found_by_the_digest(detoured, at):
    found = detoured(Fault(corrupt_at=at))
    assert found["did"]
    assert found["broken"]["error"] == "DigestMismatch"
    check_source(found)


@pytest.mark.deep
def test_a_stalled_connection_ends_in_time(detoured):
    found = detoured(Fault(stall_at=2_000_000))
    assert found["did"]
    assert found["broken"]["error"] == "PeerLost"
    assert found["broken"]["seconds"] < TIMEOUT_S + MARGIN_S
    check_source(found)


def test_a_slow_network_only_takes_longer(detoured):
    found = detoured(Fault(latency_s=0.01))
    assert found["broken"]["error"] is None
    check_source(found)

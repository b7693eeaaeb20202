"""`baton apply` on a server that runs: changed once, then as the file says. Paced workers, real processes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.e2e.server import BATON, PACED, Server

pytestmark = pytest.mark.e2e
AUTO = "pd: 1p2d\nautoscale: [prefill=1..2, decode=2..3]\nslo: [ttft:900, tpot:90]\n"


def applied(server: Server, file: Path, text: str, *flags: str) -> list[str]:
    file.write_text(text, encoding="utf-8")
    command = [str(BATON), "apply", "-f", str(file), "--url", server.url, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    return done.stdout.splitlines()


def test_a_server_becomes_what_its_file_says_and_stays_so(tmp_path: Path) -> None:
    file = tmp_path / "baton.yaml"
    with Server("--pd", "1p1d", program=PACED) as server:
        told = applied(server, file, "pd: 1p2d\n", "--dry-run")
        assert told == ["would change decode: 1 → 2"]
        assert server.client.get("/cluster").json()["target"] == {"prefill": 1, "decode": 1}
        assert applied(server, file, "pd: 1p2d\n") == ["changed decode: 1 → 2"]
        ready = [w["role"] for w in server.client.get("/cluster").json()["workers"]]
        assert sorted(ready) == ["decode", "decode", "prefill"]
        assert applied(server, file, "pd: 1p2d\n") == ["nothing to change"]
        assert "changed mode: off → on" in applied(server, file, AUTO)
        assert applied(server, file, AUTO) == ["nothing to change"]
        faster = AUTO.replace("900", "700")
        assert applied(server, file, faster) == ["changed ttft_ms: 900.0 → 700.0"]
        assert server.client.get("/cluster/autoscale").json()["ttft_ms"] == 700.0
        assert "changed mode: on → off" in applied(server, file, "pd: 1p2d\n")

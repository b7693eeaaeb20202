"""A real `baton serve` for tests. Owns its process from start to end."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from benchmarks.servers import descendants
from coordinator.cluster.registry import SILENCE_S
from tests.e2e import prepared
from tests.patience import PATIENCE_S, until
from tests.plain_http import NO_AUTHORITIES
from worker.heartbeat import HEARTBEAT_S

BATON = Path(sys.executable).parent / "baton"
MOCK = (sys.executable, "-m", "tests.e2e.mock_engine")
"""`baton`, but its workers run the attesting mock: many requests a second, and no weights."""
PACED = (sys.executable, "-m", "tests.e2e.paced_engine")
"""As MOCK, but a step takes as long as on an accelerator: streams last, and cost no processor time."""
EAGER = (sys.executable, "-m", "tests.e2e.eager_engine")
"""As MOCK, or with `--real` as BATON, but the launcher starts what died again at once, however often it dies."""
FORKS = {(str(BATON),): ("deploy.cli",)} | {
    program: program[2:] for program in (MOCK, PACED, EAGER, (*EAGER, "--real"))
}
"""The same programs, as modules and their words for a fork to run."""
READY_TIMEOUT_S = 2 * PATIENCE_S

PORTS = range(20_000, 32_000)
"""Below those that the kernel gives away by itself, above those of Ray's workers: nobody else takes one meanwhile."""


def free_port() -> int:
    """By chance, so that processes which start servers side by side hardly choose the same."""
    chance = random.SystemRandom()
    while True:
        port = chance.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
        return port


class Server:
    """`with Server("--pd", "1p1d") as server:`; ended by SIGINT, and by SIGKILL if that does not do.

    Its processes are forks of a prepared one, but `afresh` and in an environment of its own: those begin as a user's do.
    """

    def __init__(
        self,
        *arguments: str,
        program: tuple[str, ...] = (str(BATON),),
        environment: dict[str, str] | None = None,
        afresh: bool = False,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - lives as long as the server
        started = time.monotonic()
        asked = ["serve", *arguments, "--port", str(self.port)]
        self.process: subprocess.Popen[bytes] | prepared.Forked
        if afresh or environment or program not in FORKS:
            self.process = subprocess.Popen(
                [*program, *asked],
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        else:
            self.process = prepared.start([*FORKS[program], *asked], self._log.fileno())
        self.client = httpx.Client(base_url=self.url, timeout=2 * PATIENCE_S, verify=NO_AUTHORITIES)
        self._await_ready(started + READY_TIMEOUT_S)
        self.ready_after_s = time.monotonic() - started

    def _await_ready(self, until_s: float) -> None:
        waiter = threading.Event()
        while time.monotonic() < until_s:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended at its start:\n{self.log()}")
            if self.is_healthy():
                return
            waiter.wait(0.05)
        told = self.log()
        self.stop()
        raise AssertionError(f"the server did not become ready:\n{told}")

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def complete(self, **body: Any) -> dict[str, Any]:
        reply = self.client.post("/v1/completions", json=body)
        assert reply.status_code == 200, reply.text
        result: dict[str, Any] = reply.json()
        return result

    def chat(self, **body: Any) -> dict[str, Any]:
        reply = self.client.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        result: dict[str, Any] = reply.json()
        return result

    def cluster(self) -> dict[str, Any]:
        view: dict[str, Any] = self.client.get("/cluster").json()
        return view

    def audit(self) -> dict[str, Any]:
        account: dict[str, Any] = self.client.get("/cluster/audit").json()
        return account

    def worker(self, role: str) -> dict[str, Any]:
        found: dict[str, Any] = next(w for w in self.cluster()["workers"] if w["role"] == role)
        return found

    def await_pair(self) -> None:
        """A worker of each role is ready."""

        def ready() -> set[str]:
            return {w["role"] for w in self.cluster()["workers"] if w["state"] == "ready"}

        until(lambda: ready() == {"prefill", "decode"}, "both workers being ready")

    def descendants(self) -> list[int]:
        """Pids whose ancestor is the launcher, whatever their session."""
        return descendants(self.process.pid)

    def coordinator_pid(self) -> int:
        """The pid of the child that runs the coordinator."""
        return next(
            pid
            for pid in self.descendants()
            if b"coordinator_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )

    def is_healthy(self) -> bool:
        """Whether `/health` answers 200; False too while nobody listens."""
        try:
            return self.client.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def interrupt(self) -> float:
        """Ctrl-C; seconds until the launcher is gone."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(PATIENCE_S)
        return time.monotonic() - started

    def await_heartbeats(self) -> None:
        """Figures that workers tell of themselves are new then: who said nothing for so long would be given up."""
        threading.Event().wait(SILENCE_S + HEARTBEAT_S)

    def stop(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            pids = self.descendants()
            try:
                self.interrupt()
            except subprocess.TimeoutExpired:
                for pid in [self.process.pid, *pids]:
                    os.kill(pid, signal.SIGKILL)
                self.process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            print(self.log())
        self.stop()

"""`baton serve --launcher ray` for tests, a Ray of several nodes, and a load whose every token is checked."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil

from tests.e2e.server import MOCK, Server
from tests.patience import PATIENCE_S, until
from tests.plain_http import NO_AUTHORITIES

MODEL = "smollm2-135m"
SIZE = ("--kv-cache-memory", "64MiB", "--max-model-len", "1024")


class RayServer(Server):
    """Over the mock engine, so that tokens prove every byte."""

    def __init__(
        self,
        *arguments: str,
        environment: dict[str, str] | None = None,
        size: tuple[str, ...] = SIZE,
    ) -> None:
        self._launch = ""
        given = ("--launcher", "ray", *size, *arguments)
        super().__init__(*given, program=MOCK, environment=environment)
        assert self.launch()

    def say(self, text: str, seconds: float = PATIENCE_S) -> None:
        """Wait for a line of its output."""
        until(lambda: text in self.log(), f"{text!r} in\n{self.log()}\n", seconds)

    def pids(self) -> dict[str, int]:
        """Worker → pid."""
        return {worker["id"]: worker["pid"] for worker in self.cluster()["workers"]}

    def ready(self, *names: str) -> bool:
        """Whether exactly these workers are ready."""
        workers = self.cluster()["workers"]
        return sorted(names) == sorted(w["id"] for w in workers if w["state"] == "ready")

    def processes(self) -> list[psutil.Process]:
        """Everything of this cluster: its launch id is in every keeper's and engine's command line."""
        found = []
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if self.launch() in line:
                found.append(process)
        for pid in self.descendants():
            with contextlib.suppress(psutil.Error):
                found.append(psutil.Process(pid))
        return found

    def launch(self) -> str:
        """The launch id: its directory is named after it."""
        for pid in self.descendants():
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if "deploy.launch.ray.agent" in line:
                self._launch = line[line.index("deploy.launch.ray.agent") + 2]
        return self._launch

    def directory(self) -> Path:
        """Where its processes have their files."""
        return Path(tempfile.gettempdir()) / f"baton-ray-{self.launch()}"

    def one(self, part: str) -> psutil.Process:
        """The process with `part` in its command line, as `keeper decode-0` or `worker_main decode-0`."""
        words = part.split()
        return next(
            p for p in self.processes() if all(word in " ".join(p.cmdline()) for word in words)
        )

    def seats(self) -> list[psutil.Process]:
        """The actors' processes, where Ray is ours."""
        found = []
        for pid in self.descendants():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                found += [process] if "ray::Seat" in " ".join(process.cmdline()) else []
        return found


def gone(processes: list[psutil.Process], seconds: float = PATIENCE_S) -> list[psutil.Process]:
    """Those that still run after so long; one that has ended may wait for its parent to take note of it."""
    left = psutil.wait_procs(processes, seconds)[1]
    return [process for process in left if _runs(process)]


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Load:
    """Requests without a pause, some at once, until the end of the `with`; wrong and lost ones are told."""

    def __init__(self, server: Server, at_once: int = 4, max_tokens: int = 48) -> None:
        self.server, self.max_tokens = server, max_tokens
        self.done, self.wrong, self.lost = 0, 0, []  # type: ignore[var-annotated]
        self.prompts = [[17 + i, *range(100 + 7 * i, 260 + 7 * i)] for i in range(8)]
        self.expected = [self._tokens(prompt) for prompt in self.prompts]
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(at_once)
        self._at_once = at_once

    def _tokens(self, prompt: list[int]) -> list[int]:
        body = {
            "model": MODEL,
            "prompt": prompt,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "seed": 7,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        reply = httpx.post(
            f"{self.server.url}/v1/completions",
            json=body,
            timeout=PATIENCE_S,
            verify=NO_AUTHORITIES,
        )
        assert reply.status_code == 200, reply.text
        found: list[int] = reply.json()["choices"][0]["token_ids"]
        return found

    def _run(self, first: int) -> None:
        index, pause = first, threading.Event()
        while not self._stop.is_set():
            at = index % len(self.prompts)
            try:
                tokens = self._tokens(self.prompts[at])
            except (AssertionError, httpx.HTTPError) as error:
                self.lost.append(repr(error))
            else:
                self.done += 1
                self.wrong += tokens != self.expected[at]
            index += 1
            pause.wait(0.02)

    def __enter__(self) -> Load:
        self._runs = [self._pool.submit(self._run, index) for index in range(self._at_once)]
        return self

    def go_on(self, requests: int = 20) -> None:
        """Wait until so many more are done."""
        goal = self.done + requests
        until(lambda: self.done >= goal, f"{requests} more requests ({self.lost[-1:]})")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for run in self._runs:
            run.result(2 * PATIENCE_S)
        self._pool.shutdown()

    def check(self) -> None:
        """0 lost, 0 wrong."""
        assert (self.lost, self.wrong) == ([], 0), (
            f"{self.done} done, {self.wrong} wrong, {self.lost}"
        )
        assert self.done > 0


class RayNodes:
    """A Ray with nodes of chosen resources; `environment` is for whoever joins it."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="bt-ray-")
        token = Path(self._directory.name) / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_metrics_collection": "0",
            "RAY_worker_niceness": "0",
            "RAY_TMPDIR": self._directory.name,
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_failure_threshold": "10",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.ray_nodes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environment},
            start_new_session=True,
        )
        self.pids: dict[str, dict[str, int]] = {}
        self.head = ""
        self.address = ""

    def add(self, **resources: float) -> str:
        """A node more; its id."""
        answer = self._ask(f"add {json.dumps(resources)}")
        self.address = answer["address"]
        node_id: str = answer["node_id"]
        self.pids[node_id] = answer["pids"]
        self.head = self.head or node_id
        return node_id

    def kill(self, node_id: str, name: str) -> None:
        """SIGKILL to a node's raylet, or to the head's gcs_server."""
        os.kill(self.pids[node_id].pop(name), signal.SIGKILL)

    def drain(self, node_id: str, seconds: int) -> None:
        """As a cloud does before it takes a spot machine away."""
        ray = Path(sys.executable).parent / "ray"
        subprocess.run(
            [
                *(str(ray), "drain-node", "--address", self.address, "--node-id", node_id),
                *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"),
                *("--deadline-remaining-seconds", str(seconds)),
            ],
            check=True,
            env={**os.environ, **self.environment},
            capture_output=True,
        )

    def _ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        while not (answer := self.process.stdout.readline()).startswith("{"):
            assert answer, "the nodes ended"
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._directory.cleanup()

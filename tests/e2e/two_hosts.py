"""A cluster on two hosts, which are network namespaces joined by a cable. Owns the namespaces and the processes.

    namespace a, 10.213.7.1: coordinator, prefill-0 ──veth── namespace b, 10.213.7.2: decode-0

Every process also has a mount namespace of its own, made by `ip netns exec`: paths exist on both sides.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec

from deploy.config.serve_config import resolve
from deploy.config.topology import cache_directory
from deploy.host.model_source import prepare
from deploy.launch.plan import Host, Plan, make_plan
from protocol.channel_keys import ClusterKeys
from tests.patience import PATIENCE_S
from tests.plain_http import NO_AUTHORITIES
from worker.engine_start import MOCK_BACKEND

ROOT = Path(__file__).parents[2]
ADDRESSES = {"a": "10.213.7.1", "b": "10.213.7.2"}
CONTROL_PORT, HTTP_PORT = 7300, 7400
READY_S, END_S = 90.0, 10.0
_CLONE_NEWNET = 0x40000000
_ETH_P_ALL = 3
T = TypeVar("T")


def obstacle() -> str | None:
    """Why namespaces cannot be made here."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "needs the command ip (package iproute2)"
    name = f"baton-try-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "this kernel or container lets nobody make network namespaces"
    run("ip", "netns", "del", name)
    return None


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


class TwoHosts:
    """The namespaces; each test process has its own pair."""

    def __init__(self) -> None:
        self.names = {side: f"baton-{side}-{os.getpid()}" for side in ADDRESSES}
        a, b = self.names["a"], self.names["b"]
        for name in (a, b):
            run("ip", "netns", "add", name)
        run("ip", "-n", a, "link", "add", "cable", "type", "veth", "peer", "cable", "netns", b)
        for side, name in self.names.items():
            run("ip", "-n", name, "address", "add", f"{ADDRESSES[side]}/24", "dev", "cable")
            run("ip", "-n", name, "link", "set", "cable", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")

    def on(self, side: str, do: Callable[[], T]) -> T:
        """What `do` returns in a thread that lives on that host, as do the threads it makes."""
        result: list[T] = []
        errors: list[BaseException] = []

        def body() -> None:
            try:
                with Path(f"/run/netns/{self.names[side]}").open(encoding="ascii") as namespace:
                    assert ctypes.CDLL(None).setns(namespace.fileno(), _CLONE_NEWNET) == 0
                result.append(do())
            except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
                errors.append(error)

        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        thread.join(120)
        assert not thread.is_alive(), "it did not end"
        if errors:
            raise errors[0]
        return result[0]

    def listeners(self, side: str) -> list[tuple[str, int]]:
        """Address and port of every tcp listener there, IPv6 ones in hexadecimal."""
        found = []
        for table in ("tcp", "tcp6"):
            text = run("ip", "netns", "exec", self.names[side], "cat", f"/proc/net/{table}")
            for line in text.splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == "0A":
                    host, port = local.split(":")
                    raw = bytes.fromhex(host)
                    shown = socket.inet_ntoa(raw[::-1]) if len(raw) == 4 else host
                    found.append((shown, int(port, 16)))
        return found

    def close(self) -> None:
        for name in self.names.values():
            run("ip", "netns", "del", name)


class Wiretap:
    """Everything that crosses the cable, from the making to `stop`."""

    def __init__(self, hosts: TwoHosts) -> None:
        self.heard = bytearray()
        self._over = threading.Event()
        self._socket = hosts.on("a", self._open)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _open(self) -> socket.socket:
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        tap.bind(("cable", 0))
        tap.settimeout(0.1)
        return tap

    def _listen(self) -> None:
        while not self._over.is_set():
            try:
                self.heard += self._socket.recv(1 << 17)
            except TimeoutError:
                continue

    def stop(self) -> bytes:
        self._over.set()
        self._thread.join()
        self._socket.close()
        return bytes(self.heard)


class SpreadCluster:
    """Coordinator and prefill on one host, decode on the other, with the attesting mock."""

    def __init__(self, hosts: TwoHosts, number: int = 0, **options: str) -> None:
        self.hosts, self._number = hosts, number
        self.keys = ClusterKeys.generate()
        self.directory = Path(tempfile.mkdtemp(prefix="baton-two-"))
        self.plan = self._plan({"kv-cache-memory": "64MiB", "max-model-len": "1024", **options})
        self._log = (self.directory / "log").open("w+", encoding="utf-8")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def _plan(self, options: dict[str, str]) -> Plan:
        config = resolve({"host": ADDRESSES["a"], "auth": "false", **options}, {}).config
        model = prepare(config.model, (), "float32", cache_directory(), lambda *_: None)
        plan = make_plan(config, model, Host.here(), self.directory, HTTP_PORT + self._number)
        control = f"tcp://{ADDRESSES['a']}:{CONTROL_PORT + self._number}"
        sides = {"prefill-0": "a", "decode-0": "b"}
        workers = tuple(
            msgspec.structs.replace(
                worker,
                backend=MOCK_BACKEND,
                control=control,
                keys=self.keys.for_worker(),
                peer_host=ADDRESSES[sides[worker.worker_id]],
                cores=(),
            )
            for worker in plan.workers
        )
        coordinator = msgspec.structs.replace(
            plan.coordinator, control=control, keys=self.keys.for_coordinator()
        )
        return Plan(coordinator, workers)

    def start(self) -> None:
        self.spawn("a", "coordinator", self.plan.coordinator)
        self.spawn("a", "prefill-0", self.plan.workers[0])
        self.spawn("b", "decode-0", self.plan.workers[1])
        self.until(self._is_healthy, "ready")

    def spawn(self, side: str, name: str, spec: msgspec.Struct) -> subprocess.Popen[bytes]:
        path = self.directory / f"{name}.json"
        path.touch(mode=0o600)
        path.write_bytes(msgspec.json.encode(spec))
        module = "coordinator_main" if name == "coordinator" else "worker_main"
        child = [sys.executable, "-P", "-m", f"deploy.processes.{module}", str(path)]
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.hosts.names[side], *child],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=dict(os.environ, PYTHONPATH=str(ROOT)),
        )
        self.processes[name] = process
        return process

    def until(self, condition: Callable[[], bool], what: str, seconds: float = READY_S) -> None:
        """Wait for a condition of the outside world."""
        pause = threading.Event()
        for _ in range(int(seconds / 0.1)):
            if condition():
                return
            pause.wait(0.1)
        raise AssertionError(f"not {what}:\n{self.log()}")

    def _is_healthy(self) -> bool:
        try:
            return self.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def get(self, path: str) -> httpx.Response:
        return self.hosts.on(
            "a", lambda: httpx.get(self._url(path), timeout=PATIENCE_S, verify=NO_AUTHORITIES)
        )

    def _url(self, path: str) -> str:
        return f"http://{ADDRESSES['a']}:{HTTP_PORT + self._number}{path}"

    def complete(self, prompt: list[int], count: int) -> list[int]:
        """Token ids after a prompt of token ids."""
        body = {
            "model": "smollm2-135m",
            "prompt": prompt,
            "max_tokens": count,
            "seed": 5,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        reply = self.hosts.on(
            "a",
            lambda: httpx.post(
                self._url("/v1/completions"), json=body, timeout=PATIENCE_S, verify=NO_AUTHORITIES
            ),
        )
        assert reply.status_code == 200, (reply.text, self.log())
        found: list[int] = reply.json()["choices"][0]["token_ids"]
        return found

    def worker(self, name: str) -> dict[str, Any]:
        workers = self.get("/cluster").json()["workers"]
        found: dict[str, Any] = next(w for w in workers if w["id"] == name)
        return found

    def log(self) -> str:
        return (self.directory / "log").read_text(encoding="utf-8")

    def close(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._log.close()
        shutil.rmtree(self.directory)

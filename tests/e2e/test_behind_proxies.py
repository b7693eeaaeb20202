"""Behind nginx, HAProxy and Envoy, as `docs/proxies.md` sets them up: streams in pieces, keys, health checks, a dead server."""

from __future__ import annotations

import getpass
import itertools
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.edge_server import TOKEN_EVERY_S, edge_server
from tests.e2e.server import free_port
from tests.marks import deep
from tests.patience import ATTEMPTS, PATIENCE_S

pytestmark = pytest.mark.e2e
PAGE = Path(__file__).parents[2] / "docs" / "proxies.md"
PROXIES = ("nginx", deep("haproxy"), deep("envoy"))
LANGUAGES = {"envoy": "yaml"}
ENVOY = PAGE.parents[1] / ".clients" / "envoy"
"""Its wheel's environment, which `make clients` and CI make; see `tests/clients/requirements/envoy.txt`."""
HEADERS = {"authorization": "Bearer k"}


def found(name: str) -> str | None:
    places = (None, "/usr/sbin", str(ENVOY / "bin"))
    return next(filter(None, (shutil.which(name, path=place) for place in places)), None)


def recipe(language: str, ports: dict[int, int], certificate: str = "") -> str:
    """The page's own lines, with the ports of this test."""
    told = PAGE.read_text(encoding="utf-8").partition(f"```{language}\n")[2].partition("```")[0]
    assert told
    for there, here in ports.items():
        for before in (":", "listen ", "port_value: "):
            told = told.replace(f"{before}{there}", f"{before}{here}")
    return told


@contextmanager
def proxy(name: str, directory: Path, backends: list[int]):
    """In front of two servers; its URL."""
    port, config = free_port(), directory / f"{name}.{LANGUAGES.get(name, 'cfg')}"
    ports = {8000: backends[0], 8001: backends[1], 8080: port}
    told = recipe(LANGUAGES.get(name, name), ports)
    if name == "nginx":
        told = (
            f"daemon off; user {getpass.getuser()}; pid {directory}/pid; error_log {directory}/error.log;\n"
            f"events {{}}\nhttp {{ access_log off; client_body_temp_path {directory}/body;\n"
            f"proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/f;\n"
            f"uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;\n{told}\n}}\n"
        )
    config.write_text(told, encoding="utf-8")
    program = found(name)
    assert program is not None
    command = {
        "nginx": [program, "-p", str(directory), "-c", str(config), "-e", "stderr"],
        "haproxy": [program, "-db", "-f", str(config)],
        "envoy": [program, "-c", str(config), "--disable-hot-restart", "--concurrency", "1"],
    }[name]
    process = subprocess.Popen(command)
    try:
        await_health(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def await_health(url: str, process: subprocess.Popen) -> None:
    waiter = threading.Event()
    for _ in range(100):
        assert process.poll() is None, "the proxy ended"
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        waiter.wait(0.1)
    raise AssertionError("never healthy")


@pytest.mark.parametrize("name", PROXIES)
def test_streams_keys_and_a_dead_server(tmp_path, name):
    if found(name) is None:
        pytest.skip(f"no {name} here")
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
    app = {"api_keys": ["k"]}
    with edge_server(tmp_path / "a", app=app) as first:
        with (
            edge_server(tmp_path / "b", app=app) as second,
            proxy(name, tmp_path, [first, second]) as url,
            httpx.Client(base_url=url) as client,
        ):
            check(client)
        # the second one is gone: every request finds the first
        with proxy(name, tmp_path, [first, second]) as url, httpx.Client(base_url=url) as client:
            for _ in range(20):
                assert complete(client).status_code == 200


def complete(client: httpx.Client, **fields) -> httpx.Response:
    body = {"prompt": "Hello", "max_tokens": 1} | fields
    return client.post("/v1/completions", json=body, headers=HEADERS)


def check(client: httpx.Client) -> None:
    reply = client.post("/v1/completions", json={"prompt": "Hello"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
    assert complete(client, prompt="x" * 2_000_000).status_code == 400
    for _ in range(20):
        assert complete(client).status_code == 200
    assert any(comes_in_pieces(client) for _ in range(ATTEMPTS))


def comes_in_pieces(client: httpx.Client) -> bool:
    """Whether most tokens of a stream come by themselves; to a client that was stopped meanwhile they do not."""
    body = {"prompt": "Hello", "max_tokens": 20, "stream": True}
    began_s = time.monotonic()
    with client.stream("POST", "/v1/completions", json=body, headers=HEADERS) as reply:
        lines = (line for line in reply.iter_lines() if line.startswith("data: {"))
        times_s = [time.monotonic() - began_s for _ in lines]
    assert len(times_s) == 20
    gaps_s = [later - sooner for sooner, later in itertools.pairwise(times_s)]
    assert times_s[-1] >= 19 * TOKEN_EVERY_S * 0.9
    return sum(gap > TOKEN_EVERY_S / 4 for gap in gaps_s) >= 10

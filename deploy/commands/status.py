"""`baton status`: what a running server says of itself. Owns the table and the asking; the facts are `GET /cluster`."""

from __future__ import annotations

import json
import sys
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from deploy.commands.chat import ServerError, explain

PLAIN_WIDTH = 160
"""Of a table that goes into a file or a pipe."""


def show_status(url: str, api_key: str | None, *, as_json: bool) -> int:
    """Print it; exit status 0 when the server is ready, 1 when it is not."""
    with status_client(url, api_key) as client:
        cluster = read_cluster(client)
    if as_json:
        print(json.dumps(cluster, indent=2))
    else:
        console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
        console.print(headline(cluster))
        console.print(worker_table(cluster))
    return 0 if cluster["ready"] else 1


def status_client(url: str, api_key: str | None) -> httpx.Client:
    """For `read_cluster`; close it."""
    base = url.rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return httpx.Client(base_url=base, headers=headers, timeout=5.0, trust_env=False)


def read_cluster(client: httpx.Client) -> dict[str, Any]:
    """`GET /cluster`; ServerError when there is no server or no answer."""
    try:
        response = client.get("/cluster")
    except httpx.TransportError as error:
        where = str(client.base_url).rstrip("/")
        raise ServerError(
            f"no server at {where} ({type(error).__name__}); start one with: baton serve"
        ) from error
    if response.status_code != 200:
        raise ServerError(explain(response))
    cluster: dict[str, Any] = response.json()
    return {"ready": False, **cluster}


def headline(cluster: dict[str, Any]) -> str:
    """Model, readiness and how many requests are live."""
    live = cluster.get("requests", {}).get("live", 0)
    return (
        f"{cluster.get('model')} · {'ready' if cluster['ready'] else 'not ready'} · {live} requests"
    )


def worker_table(cluster: dict[str, Any]) -> Table:
    """One row a worker."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("worker", "role", "state", "pid"):
        table.add_column(heading)
    for heading in ("waiting", "running", "pulling", "held", "cached", "free"):
        table.add_column(heading, justify="right")
    for worker in cluster.get("workers", ()):
        blocks, requests = worker.get("blocks", {}), worker.get("requests", {})
        names = [str(worker.get(key, "?")) for key in ("id", "role", "state", "pid")]
        counts = [requests.get(key, 0) for key in ("waiting", "running", "transferring")]
        counts += [blocks.get(key, 0) for key in ("held", "cached", "free")]
        table.add_row(*names, *map(str, counts))
    return table

"""`baton status`: what a running server says of itself. Owns the table; the facts are `GET /cluster`."""

from __future__ import annotations

import json
import sys
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from deploy.chat import ServerError, explain

PLAIN_WIDTH = 160
"""Of a table that goes into a file or a pipe."""


def show_status(url: str, api_key: str | None, *, as_json: bool) -> int:
    """Print it; exit status 0 when the server is ready, 1 when it is not."""
    base = url.rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with httpx.Client(base_url=base, headers=headers, timeout=5.0, trust_env=False) as client:
            ready = client.get("/health").status_code == 200
            response = client.get("/cluster")
    except httpx.TransportError as error:
        raise ServerError(
            f"no server at {base} ({type(error).__name__}); start one with: baton serve"
        ) from error
    if response.status_code != 200:
        raise ServerError(explain(response))
    cluster = response.json()
    if as_json:
        print(json.dumps({"ready": ready, **cluster}, indent=2))
    else:
        console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
        live = cluster.get("requests", {}).get("live", 0)
        console.print(
            f"{cluster.get('model')} · {'ready' if ready else 'not ready'} · {live} requests"
        )
        console.print(worker_table(cluster))
    return 0 if ready else 1


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

"""`baton status`: what a running server says of itself. Owns the table and the asking; the facts are `GET /cluster`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import httpx
from rich.console import Console
from rich.table import Table

from deploy.commands.asking import told_by
from deploy.config.values import format_bytes
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

FULL = ("target", "ready")
STORE_TROUBLE = {
    "waiting_blocks": "still to be kept",
    "dropped_blocks": "given up: too many came",
    "disk_proofs_failed": "damaged on disk, and not served",
    "disk_errors": "errors of the disk",
}
MOST_SHOWN = 10
"""Adapters in a line."""
PLAIN_WIDTH = 160
"""Of a table that goes into a file or a pipe."""


def show_status(url: str, api_key: str | None, *, as_json: bool) -> int:
    """Print it; exit status 0 when the server is ready, 1 when it is not."""
    with status_client(url, api_key) as client:
        cluster = read_cluster(client)
    if as_json:
        print(json.dumps(cluster, indent=2))
    else:
        console = plain_console()
        console.print(headline(cluster))
        for line in notes(cluster):
            console.print(line, soft_wrap=True)
        console.print(worker_table(cluster))
    return 0 if cluster["ready"] else 1


def plain_console() -> Console:
    """For stdout; names stand as they are: `a[b]` is no style there, and `a:key:b` no picture."""
    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    return _Plain(width=width, markup=False, emoji=False)


class _Plain(Console):
    """One whose reader is gone tells so, like every other output."""

    def on_broken_pipe(self) -> None:
        """As it came."""
        raise BrokenPipeError


def status_client(url: str, api_key: str | None) -> httpx.Client:
    """For `read_cluster`; close it."""
    base = url.rstrip("/").removesuffix("/v1")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        return httpx.Client(base_url=base, headers=headers, timeout=5.0, trust_env=False)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ConfigError(f"--url: {url!r} is no URL: {error}") from None


def read_cluster(client: httpx.Client) -> dict[str, Any]:
    """`GET /cluster`; ServerError when there is no server or no answer."""
    return {"ready": False, **told_by(client, "GET", "/cluster")}


def headline(cluster: dict[str, Any]) -> str:
    """Model, readiness and how many requests are live."""
    live = cluster.get("requests", {}).get("live", 0)
    return f"{cluster.get('model')} · {_is_ready(cluster)} · {live} requests"


def notes(cluster: dict[str, Any]) -> list[str]:
    """What an operator must know beside the workers: sizes, who waits for what, Ray, the autoscaler, the SLO."""
    scaling, autoscaler = cluster.get("scaling", {}), cluster.get("autoscaler", {})
    found = [_pools(cluster["pools"])] if cluster.get("pools") else []
    found += [store_line(worker) for worker in cluster.get("workers", ()) if "store" in worker]
    if scaling.get("away"):
        found.append(f"workers can be neither started nor stopped: {scaling['away']}")
    found += [waiting(entry) for entry in scaling.get("waiting", ())]
    found += refusals(scaling.get("refused", ()))
    if autoscaler.get("enabled"):
        found.append(_wants(autoscaler))
        found += [autoscaler[key] for key in ("trouble", "beyond_reach") if autoscaler[key]]
    if cluster.get("slo"):
        found.append(slo_line(cluster["slo"]))
    found += [model_line(name, view) for name, view in cluster.get("models", {}).items()]
    if cluster.get("adapters", {}).get("registered"):
        found.append(adapters_line(cluster["adapters"]))
    return found


def model_line(name: str, view: dict[str, Any]) -> str:
    """Of one of several models: `qwen: loaded, goes in 240 s · prefill 1 of 1 · decode 1 of 1 · 3 requests`."""
    residency = view.get("residency")
    told = [f"{name}: {_state(residency) if residency else _is_ready(view)}"]
    if view.get("pools") and any(counts["target"] for counts in view["pools"].values()):
        told.append(_pools(view["pools"]))
    told.append(f"{view['requests']['live']} requests")
    if residency and residency["waiting"]:
        told.append(f"{residency['waiting']} wait for it")
    if view.get("slo"):
        told.append(slo_line(view["slo"]))
    return " · ".join(told)


def _is_ready(view: dict[str, Any]) -> str:
    """Also of one that sleeps: it serves whoever asks."""
    level = view.get("sleep", {}).get("level", 0)
    if level:
        return f"asleep (level {level}), a request wakes it"
    return "ready" if view["ready"] else "not ready"


def _state(residency: dict[str, Any]) -> str:
    state, in_s = residency["state"], residency["expires_in_s"]
    if state == "failed":
        return f"failed ({residency['failure']})"
    if state != "loaded":
        return str(state)
    return "loaded, stays" if in_s is None else f"loaded, goes in {in_s:.0f} s"


def adapters_line(adapters: dict[str, Any]) -> str:
    """`1000 adapters, in memory: sql (decode-0, prefill-0), poems (decode-0) and 30 more`."""
    resident = adapters["resident"]
    shown = [f"{one['name']} ({', '.join(one['workers'])})" for one in resident[:MOST_SHOWN]]
    more = f" and {len(resident) - MOST_SHOWN} more" if resident[MOST_SHOWN:] else ""
    return f"{adapters['registered']} adapters, in memory: {', '.join(shown) or 'none'}{more}"


def _pools(pools: dict[str, dict[str, int]]) -> str:
    """`prefill 2 of 3 (1 waiting) · decode 4 of 4`."""
    parts = []
    for role, counts in pools.items():
        others = [f"{n} {what}" for what, n in counts.items() if n and what not in FULL]
        told = f" ({', '.join(others)})" if others else ""
        parts.append(f"{role} {counts['ready']} of {counts['target']}{told}")
    return " · ".join(parts)


def store_line(worker: dict[str, Any]) -> str:
    """`store-0: 812 blocks kept, 40 in memory · 300 on disk (220.1 MiB of 20.0 GiB) · lent 416 from memory, 96 from disk`,
    and what waits or failed, if anything does."""
    store, blocks = worker["store"], worker.get("blocks", {})
    in_memory = blocks.get("cached", 0) + blocks.get("held", 0)
    told = [f"{worker['id']}: {store['kept_blocks']} blocks kept, {in_memory} in memory"]
    if store["disk_limit_bytes"]:
        sizes = f"{format_bytes(store['disk_bytes'])} of {format_bytes(store['disk_limit_bytes'])}"
        told.append(f"{store['disk_blocks']} on disk ({sizes})")
    told.append(
        f"lent {store['lent_memory_blocks']} from memory, {store['lent_disk_blocks']} from disk"
    )
    told += [f"{store[name]} {about}" for name, about in STORE_TROUBLE.items() if store[name]]
    if store["disk_lag_s"]:
        told.append(f"the disk is {store['disk_lag_s']:.1f} s behind")
    return " · ".join(told)


def waiting(entry: dict[str, Any]) -> str:
    """`decode-3 waits for a node with decode_slot 1 (12 s)`."""
    return f"{entry['id']} waits for {entry['waits_for']} ({entry['for_s']:.0f} s)"


def refusals(refused: Sequence[dict[str, Any]]) -> list[str]:
    """One line a reason, however many workers it kept away."""
    found: dict[str, list[str]] = {}
    for entry in refused:
        found.setdefault(entry["reason"], []).append(entry["id"])
    return [f"{_names(names)} not started: {reason}" for reason, names in found.items()]


def _names(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more were" if names[1:] else f"{names[0]} was"


def _wants(autoscaler: dict[str, Any]) -> str:
    wanted = ", ".join(f"{role} {count}" for role, count in autoscaler["needs"].items())
    verb = "would (dry run) have" if autoscaler.get("dry_run") else "wants"
    return f"autoscaler {verb} {wanted or 'nothing yet'}: {autoscaler['reason']}"


def slo_line(slo: dict[str, Any]) -> str:
    """`SLO TTFT 2000 ms, TPOT 100 ms: 97.5 % of 80 requests in 5 min (goal 90 %) · goodput 0.26 requests/s`."""
    told = f"SLO TTFT {slo['ttft_ms']:g} ms, TPOT {slo['tpot_ms']:g} ms"
    if slo["attained"] is None:
        return f"{told}: nothing ended in the last {slo['window_s']:.0f} s"
    share = f"{slo['attained']:.1%} of {slo['requests']} requests (goal {slo['goal']:.0%})"
    lost = [f"{slo[key]} {key}" for key in ("refused", "failed") if slo[key]]
    return f"{told}: {', '.join([share, *lost])} · goodput {slo['goodput_per_s']:.2f} requests/s, over {slo['window_s']:.0f} s"


def worker_table(cluster: dict[str, Any]) -> Table:
    """One row a worker."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("worker", "role", "state", "pid", "node"):
        table.add_column(heading)
    for heading in ("waiting", "running", "pulling", "held", "cached", "free"):
        table.add_column(heading, justify="right")
    for worker in cluster.get("workers", ()):
        blocks, requests = worker.get("blocks", {}), worker.get("requests", {})
        names = [str(worker.get(key, "?")) for key in ("id", "role", "state", "pid", "node")]
        counts = [requests.get(key, 0) for key in ("waiting", "running", "transferring")]
        counts += [blocks.get(key, 0) for key in ("held", "cached", "free")]
        table.add_row(*names, *map(str, counts))
    return table

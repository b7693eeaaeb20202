"""`baton status --watch`: the live page in a terminal. Owns how a view of the cluster is drawn; changes nothing.

Two `GET /cluster` a second; a server that goes away is said and waited for.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from deploy.commands.chat import ServerError
from deploy.commands.status import headline, notes, read_cluster, status_client
from protocol.errors import ConfigError
from protocol.roles import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    import httpx
    from rich.console import RenderableType

INTERVAL_S = 0.5
BAR_CELLS = 24
PLOT_CELLS = 30
LEVELS = " ▁▂▃▄▅▆▇█"
STATE_STYLES = {"ready": "green", "starting": "yellow", "draining": "yellow", "lost": "bold red"}
ROLE_STYLES: dict[str, str] = {Role.PREFILL: "cyan", Role.DECODE: "green", Role.STORE: "magenta"}
PLOTS = (
    ("tokens/s", "output_tokens", "output_tokens_per_s", "green"),
    ("TTFT", "ttft_ms", "ttft_ms", "cyan"),
    ("TPOT", "tpot_ms", "tpot_ms", "green"),
)


def watch(url: str, api_key: str | None) -> int:
    """Draw until Ctrl-C, which is status 0; ServerError when there is no server at the start."""
    if not sys.stdout.isatty():
        raise ConfigError("status --watch: needs a terminal; use --json in a pipe or a file")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    console, stop = Console(), threading.Event()
    with status_client(url, api_key) as client:
        first = read_cluster(client)
        with Live(dashboard(first), console=console, screen=True, auto_refresh=False) as live:
            try:
                while not stop.wait(INTERVAL_S):
                    live.update(_next(client), refresh=True)
            except KeyboardInterrupt:
                return 0
    return 0


def _next(client: httpx.Client) -> RenderableType:
    try:
        return dashboard(read_cluster(client))
    except ServerError as error:
        return Text(f"{error}\n\nwaiting for it; Ctrl-C ends this", style="yellow")


def dashboard(view: dict[str, Any]) -> RenderableType:
    """Everything that `GET /cluster` tells, for a terminal of any width."""
    return Group(
        Text(headline(view), style="bold"),
        *(Text(line, style="dim") for line in notes(view)),
        _phases(view.get("requests", {}).get("phases", {})),
        Text(),
        _workers([*view.get("workers", ()), *view.get("lost", ())]),
        Text(),
        _plots(view.get("recent")),
    )


def _phases(phases: dict[str, int]) -> Text:
    parts = [
        Text(f"{name} {count}", style="bold" if count else "dim") for name, count in phases.items()
    ]
    return Text(" → ", style="dim").join(parts)


def _workers(workers: Sequence[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("worker", "state", "KV held, cached"):
        table.add_column(heading, no_wrap=True)
    for heading in ("waiting", "running", "pulling"):
        table.add_column(heading, justify="right")
    for worker in sorted(
        workers, key=lambda worker: (worker["role"] != Role.PREFILL, worker["id"])
    ):
        table.add_row(*_worker_row(worker))
    return table


def _worker_row(worker: dict[str, Any]) -> list[Text]:
    style, requests = ROLE_STYLES.get(worker["role"], "white"), worker.get("requests", {})
    state = Text(f"● {worker['state']}", style=STATE_STYLES.get(worker["state"], ""))
    row = [Text(worker["id"], style=style), state]
    if worker["state"] == "lost":
        return [*row, Text(f"{worker['reason']}, {worker['for_s']:.0f} s ago", style="red")]
    counts = [requests.get(name, 0) for name in ("waiting", "running", "transferring")]
    return [*row, kv_bar(worker["blocks"], style), *(Text(str(count)) for count in counts)]


def kv_bar(blocks: dict[str, int], style: str) -> Text:
    """Held blocks bright, cached ones dim, free ones dots; any block at all takes a cell."""
    total = max(blocks["total"], 1)
    held = min(-(-blocks["held"] * BAR_CELLS // total), BAR_CELLS)
    cached = min(-(-blocks["cached"] * BAR_CELLS // total), BAR_CELLS - held)
    bar = Text("█" * held, style=style).append("▒" * cached, style=f"dim {style}")
    bar.append("·" * (BAR_CELLS - held - cached), style="dim")
    return bar.append(
        f" {100 * blocks['held'] / total:3.0f} % {100 * blocks['cached'] / total:3.0f} %"
    )


def _plots(recent: dict[str, Any] | None) -> RenderableType:
    if recent is None:
        return Text("this server tells no history", style="dim")
    table = Table.grid(padding=(0, 2))
    for name, series, summary, style in PLOTS:
        values = recent[series][-PLOT_CELLS:]
        now = _figure(name, recent["summary"][summary])
        most = f"highest {_figure(name, max(filter(None, values), default=None))}"
        table.add_row(
            Text(name), Text(now, style="bold"), Text(spark(values), style=style), Text(most, "dim")
        )
    table.add_row("", "", Text(f"last {PLOT_CELLS} s; figures of the last 10 s", style="dim"))
    return table


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if name == "tokens/s" else f"{value:.1f} ms"


def spark(values: Sequence[float | None]) -> str:
    """One character a value, scaled to the highest; a gap is a space, and whatever is not zero shows."""
    top = max((value for value in values if value is not None), default=0.0)
    steps = len(LEVELS) - 1
    return "".join(
        LEVELS[min(steps, -int(-value * steps // top))] if value and top else LEVELS[0]
        for value in values
    )

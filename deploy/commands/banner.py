"""What a person sees while Baton starts. Owns words and colours only; writes to standard error.

The last thing printed is a curl line that works when pasted.
"""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from deploy.config.values import format_bytes
from engine.checkpoints.progress import PrepareStage
from protocol.ids import key_of
from protocol.quantization import Quantization
from protocol.roles import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from rich.console import Console

    from deploy.launch.plan import Plan
    from protocol.specs import PreparedModel, WorkerSpec

_COLOURS: dict[str, str] = {
    Role.PREFILL: "cyan",
    Role.DECODE: "green",
    Role.STORE: "yellow",
    "coordinator": "magenta",
}
_STAGES = {
    PrepareStage.DOWNLOAD: "fetching the model",
    PrepareStage.EXTRACT: "unpacking the model",
    PrepareStage.CONVERT: "converting the model (once)",
}


class PrepareProgress:
    """A progress bar that appears with the first stage; call it with (stage, fraction)."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._stage: PrepareStage | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Callable[[PrepareStage, float], None]:
        return self._update

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _update(self, stage: PrepareStage, fraction: float) -> None:
        if stage is PrepareStage.DOWNLOAD:  # pip draws its own bar
            self._console.print(_STAGES[stage] + " (once)")
            return
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
        if stage is not self._stage:
            self._stage = stage
            self._task = self._bar.add_task(_STAGES[stage], total=1.0)
        self._bar.update(self._task, completed=fraction)


class ChildLines:
    """Shows what children print, each line with its name; lines that begin with it are left as they are."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, name: str, line: str) -> None:
        style = _COLOURS.get(name.rpartition(".")[2].partition("-")[0], "white")
        shown = Text() if f" {name} " in line else Text(f"{name} ", style=style)
        self._console.print(shown.append(line), soft_wrap=True)


def show_warnings(console: Console, warnings: Sequence[str]) -> None:
    """What a model's files say that a person should know before it is asked."""
    for warning in warnings:
        console.print(Text("warning: ", style="yellow").append(warning, style=""), soft_wrap=True)


def _kept_as(model: PreparedModel) -> str:
    """What its numbers are, and its matrices, where that is something else."""
    if model.quantization is Quantization.NONE:
        return model.dtype
    return f"{model.quantization} weights, {model.dtype}"


def show_banner(console: Console, plan: Plan, news: dict[str, str], ready_s: float) -> None:
    """URLs, model, pools, transport, backend, capacity, and a line to paste."""
    spec = plan.coordinator
    scheme = "http" if spec.ssl_certfile is None else "https"
    url = f"{scheme}://{_reachable(spec.host)}:{spec.port}"
    table = Table.grid(padding=(0, 2))
    table.add_row("[bold]Baton[/bold]", Text(f"{url}/v1", style="bold green"))
    table.add_row("live page", Text(f"{url}/ui", style="green"))
    for own in spec.models:
        names = ", ".join(own.model.served_names)
        table.add_row("model", Text(f"{names} · {_kept_as(own.model)}"))
        mine = [worker for worker in plan.workers if key_of(worker.worker_id) == own.key]
        if mine:
            table.add_row("pools", _pools(mine))
    if plan.workers:
        table.add_row("transport", Text(news.get("transport", _transport(plan))))
        table.add_row("backend", Text(news.get("backend", plan.workers[0].backend)))
    else:
        table.add_row("memory", "models are loaded when they are asked for")
    if "launcher" in news:
        table.add_row("launcher", Text(news["launcher"]))
        table.add_row("nodes", Text(news["nodes"]))
    for role in Role:
        workers = [worker for worker in plan.workers if worker.role is role]
        if workers:
            table.add_row(f"{role} KV", _capacity(workers) if role.computes else _kept(workers))
    if spec.host not in ("127.0.0.1", "localhost", "::1") and not spec.api_keys:
        table.add_row("[yellow]open[/yellow]", f"listening on {spec.host} without keys: --no-auth")
    table.add_row("ready", f"after {ready_s:.1f} s; Ctrl-C ends it")
    console.print()
    console.print(table)
    console.print()
    console.print(
        Text(curl_line(url, spec.model.served_names[0], bool(spec.api_keys))), soft_wrap=True
    )
    console.print()


def curl_line(url: str, model: str, with_key: bool) -> str:  # noqa: FBT001
    """A request that streams an answer, ready for a shell."""
    message = {"role": "user", "content": "What is the capital of Japan?"}
    sampling = {"temperature": 0, "max_tokens": 64}
    body = json.dumps({"model": model, "messages": [message], **sampling, "stream": True})
    key = ' -H "Authorization: Bearer $BATON_API_KEY"' if with_key else ""
    kind = ' -H "Content-Type: application/json"'
    return f"curl -N {url}/v1/chat/completions{kind}{key} -d {shlex.quote(body)}"


def _reachable(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _pools(every: Sequence[WorkerSpec]) -> str:
    parts = []
    for role in Role:
        workers = [worker for worker in every if worker.role is role]
        cores = " ".join("cores " + ",".join(map(str, w.cores)) for w in workers if w.cores)
        if not workers and not role.computes:
            continue
        parts.append(f"{len(workers)} {role}" + (f" ({cores})" if cores else ""))
    return " + ".join(parts)


def _transport(plan: Plan) -> str:
    if all(worker.role is Role.DECODE for worker in plan.workers):
        return "none (colocated)"
    return plan.workers[0].transport


def _kept(stores: list[WorkerSpec]) -> str:
    tokens = sum(store.num_blocks * store.block_size for store in stores)
    kept = format_bytes(sum(store.kv_cache_bytes for store in stores))
    disk = sum(store.store_disk_bytes for store in stores)
    return f"{tokens:,} tokens in {kept}" + (f" · {format_bytes(disk)} of disk" if disk else "")


def _capacity(workers: list[WorkerSpec]) -> str:
    tokens = [worker.num_blocks * worker.block_size for worker in workers]
    longest = max(worker.max_model_len for worker in workers)
    at_once = [
        min(each.max_num_seqs, room // longest) for each, room in zip(workers, tokens, strict=True)
    ]
    return (
        f"{sum(tokens):,} tokens in {format_bytes(sum(each.kv_cache_bytes for each in workers))} · "
        f"{max(1, sum(at_once))} sequences of {longest:,} at once"
    )

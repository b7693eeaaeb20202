"""`baton serve` from its configuration to its end. Owns the order of things; each thing is elsewhere."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, cast

from rich.console import Console

from deploy.commands.banner import ChildLines, PrepareProgress, show_banner, show_warnings
from deploy.config.topology import cache_directory
from deploy.host.model_memory import (
    check_quantization_on,
    weights_bytes,
    with_quantization,
)
from deploy.host.model_source import DUMMY, OTHER_TEMPLATE, UNGUARDED, prepare, resolve_dtype
from deploy.host.run_directory import run_directory
from deploy.host.store_paths import check_store_paths
from deploy.launch.fleet_plan import make_fleet_plan
from deploy.launch.local.launcher import Launcher
from deploy.launch.plan import Host, Plan, check_chosen_template, device_of, make_plan, pool_bytes
from deploy.launch.ray.choice import choose_ray
from deploy.launch.ray.owner import RayLauncher
from deploy.launch.revisions import with_revisions
from deploy.processes.garbage import begin_collection
from deploy.processes.log_lines import QueuedText
from engine.model import shared_weights
from protocol.errors import ConfigError
from protocol.quantization import Quantization

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploy.config.serve_config import ServeConfig
    from protocol.clock import Clock
    from protocol.specs import PreparedModel

EXPORTER_MODULE = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
WEIGHTS_SHARE = 0.25
"""Weights that take more of the available memory are mapped from their file, without a copy."""


def serve(configs: Sequence[ServeConfig], clock: Clock, started_s: float) -> int:
    """Exit status 0 after a stop that was asked for; ConfigError or WorkerLost otherwise. One configuration a model."""
    with QueuedText(sys.stderr.fileno()) as shown:
        console = Console(file=cast("IO[str]", shown), highlight=False)
        return _serve(configs, clock, started_s, console)


def _serve(configs: Sequence[ServeConfig], clock: Clock, started_s: float, console: Console) -> int:
    config, host = configs[0], Host.here()
    device = device_of(config, host)  # fail before a download rather than after it
    is_fleet = len(configs) > 1 or config.on_demand
    if is_fleet:
        device = "cpu"
    elif device == "cpu" and config.launcher != "ray":
        pool_bytes(config, host)
    check_tracing(config.otlp_traces_endpoint)
    for each in configs:
        check_quantization_on(device, Quantization(each.quantization))
        check_chosen_template(each.chat_template)
    port = claim_port(config.host, config.port)
    models = []
    for each in configs:
        with PrepareProgress(console) as progress:
            model = prepare(
                each.model,
                each.served_model_name,
                resolve_dtype(each.dtype, device),
                cache_directory(),
                progress,
                flags_of(each),
            )
        show_warnings(console, model.warnings)
        quantization = Quantization(each.quantization)
        models.append(with_quantization(model, quantization, is_here=config.launcher != "ray"))
    model = models[0]
    with run_directory() as directory:
        launcher: Launcher | RayLauncher
        if config.launcher == "ray":
            choice = choose_ray(config, directory, len(host.cores))
            is_spread = choice.own is None
            plan = make_plan(config, model, host, directory, port, is_spread=is_spread)
            plan = with_revisions(plan, configs)
            launcher = RayLauncher(plan, choice, clock, ChildLines(console))
        else:
            if is_fleet:
                plan = make_fleet_plan(configs, models, host, directory, port, make_plan)
            else:
                plan = make_plan(config, model, host, directory, port)
            plan = with_revisions(plan, configs)
            if device == "cpu" and not config.on_demand:  # who goes leaves no copy behind
                plan = sharing(plan, host)
            check_store_paths(plan.workers)
            launcher = Launcher(
                plan, directory, clock, ChildLines(console), config.shutdown_timeout
            )

        def on_ready(news: str) -> None:
            told = {**read_news(news), **launcher.news}
            shown = Plan(plan.coordinator, tuple(launcher.roster.workers))
            show_banner(console, shown, told, clock.now_s() - started_s)

        begin_collection()
        asyncio.run(launcher.run(on_ready))
    return 0


def flags_of(config: ServeConfig) -> list[str]:
    """What of the model is not needed."""
    flags = {
        DUMMY: config.load_format == "dummy",
        OTHER_TEMPLATE: config.chat_template is not None,
        UNGUARDED: config.allow_special_tokens_in_content,
    }
    return [flag for flag, is_set in flags.items() if is_set]


def check_tracing(endpoint: str | None) -> None:
    """ConfigError when traces are wanted and the extra that sends them is not installed."""
    if endpoint is None:
        return
    try:
        found = all(find_spec(name) for name in ("opentelemetry.sdk.trace", EXPORTER_MODULE))
    except ModuleNotFoundError:
        found = False
    if not found:
        raise ConfigError(
            "--otlp-traces-endpoint: OpenTelemetry is not installed; "
            "run pip install 'baton-serve[otel]', or leave the flag out"
        )


def weights_memory(model: PreparedModel, host: Host) -> int | None:
    """A memfd for one copy of the weights in huge pages; None when the copy would be too large."""
    size = weights_bytes(model)
    return shared_weights.create() if size <= host.available_bytes * WEIGHTS_SHARE else None


def sharing(plan: Plan, host: Host) -> Plan:
    """The plan with a memfd for the weights of each model that it has."""
    for own in plan.coordinator.models:
        plan = plan.sharing(weights_memory(own.model, host), own.key)
    return plan


def read_news(line: str) -> dict[str, str]:
    """What a coordinator may add to `ready`: a JSON object with backend and transport."""
    try:
        news = json.loads(line or "{}")
    except json.JSONDecodeError:
        return {}
    return {str(key): str(value) for key, value in news.items()} if isinstance(news, dict) else {}


def claim_port(host: str, port: int) -> int:
    """The port to listen on, known to be free now; 0 chooses one. ConfigError when it is taken."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigError(f"--host: {host!r} is not an address of this machine: {error}") from error
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise ConfigError(
                f"--port: cannot listen on {host}:{port} ({error.strerror}); "
                "choose another with --port, or --port 0 for any free one"
            ) from error
        return int(probe.getsockname()[1])

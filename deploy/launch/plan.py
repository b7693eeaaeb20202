"""What will run on this host: one spec for every process. Owns the arithmetic from flags, model and host to specs.

Reads what the host has, and starts nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from coordinator.edge.http.limits import EdgeLimits
from coordinator.edge.text.chat_template import ChatTemplate
from coordinator.edge.text.kept_fields import try_template
from deploy.config.serve_config import names_in
from deploy.config.topology import path_at
from deploy.config.values import format_bytes, parse_utilization
from deploy.host.affinity import allowed_cores, lend_cores, quota_cores, share_cores
from deploy.host.gpu_plan import assign, check_free, pool_bytes_on
from deploy.host.gpus import find_gpus, obstacle
from deploy.host.memory import available_bytes, check_fits, default_kv_bytes
from deploy.host.model_memory import step_bytes_of
from deploy.launch.adapter_plan import with_adapters
from deploy.launch.front_names import check_front_names
from deploy.launch.stores import plan_stores
from engine.checkpoints.prepared import ELEMENT_BYTES
from protocol.clock import SystemClock
from protocol.errors import ConfigError
from protocol.ids import key_of
from protocol.randomness import random_seed
from protocol.roles import Role
from protocol.specs import CoordinatorSpec, PreparedModel, WorkerSpec

if TYPE_CHECKING:
    from deploy.config.serve_config import ServeConfig
    from deploy.config.topology import Pools
    from deploy.host.affinity import Share
    from deploy.host.gpus import Gpu

HANDOVER_S = 5.0
"""Beyond the grace, what a worker that was told to end gets for handing over the rest."""


@dataclass(frozen=True)
class Host:
    """What this machine offers now."""

    cores: tuple[int, ...]
    quota: float | None
    available_bytes: int
    gpus: tuple[Gpu, ...] = ()

    @classmethod
    def here(cls) -> Host:
        """Read from the kernel."""
        return cls(allowed_cores(), quota_cores(), available_bytes(), find_gpus())


@dataclass(frozen=True)
class Plan:
    """Everything the launcher starts, now or later."""

    coordinator: CoordinatorSpec
    workers: tuple[WorkerSpec, ...]
    standby_workers: int = 0

    @property
    def first_workers(self) -> tuple[WorkerSpec, ...]:
        """What is started at first: none where models come when they are asked for."""
        return self.workers if self.coordinator.memory_budget_bytes is None else ()

    def sharing(self, weights_fd: int | None, key: str = "") -> Plan:
        """The same plan with a memfd for the weights that all workers of a model inherit."""
        workers = (
            msgspec.structs.replace(w, weights_fd=weights_fd) if key_of(w.worker_id) == key else w
            for w in self.workers
        )
        return replace(self, workers=tuple(workers))

    def like(self, role: Role, key: str = "") -> WorkerSpec:
        """A worker of that role, or any where none is planned: what one more is made like. `key` is its model's."""
        own = [worker for worker in self.workers if key_of(worker.worker_id) == key]
        return next((worker for worker in own if worker.role == role), own[0])

    @property
    def kv_tokens(self) -> int:
        """Tokens that one worker's KV pool holds."""
        return self.workers[0].num_blocks * self.workers[0].block_size


def make_plan(  # noqa: PLR0913 - what a plan is made of
    config: ServeConfig,
    model: PreparedModel,
    host: Host,
    run_directory: Path,
    port: int,
    *,
    is_spread: bool = False,
    key: str = "",
    shares: list[Share] | None = None,
) -> Plan:
    """Specs of all processes; ConfigError when the flags, the model and the host do not fit together. `is_spread`: the
    workers will be on other hosts, whose memory says how large their pools are (`deploy.launch.ray.seating`). `key` and the
    `shares` of cores are for one of several models (`deploy.launch.fleet_plan`)."""
    if not key:
        check_front_names(config, config.called(model.served_names))
    device = device_of(config, host)
    places = [_Place(config.kv_cache_memory or 0, 0)] * config.pools.total
    if device == "cuda" or not is_spread:
        places = (_on_gpus if device == "cuda" else _on_cpu)(config, model, host)
    max_model_len = context_length(config, model, _tokens_of(config, places))
    max_num_batched_tokens, max_num_seqs = limits_on(config, device)
    control = f"ipc://{run_directory / 'control.sock'}"
    lends = device == "cpu" and config.lend_cores
    shares = shares or _shares(config, host, lends=lends)
    workers = tuple(
        WorkerSpec(
            worker_id=worker_id,
            role=role,
            model=model,
            control=control,
            run_directory=str(run_directory),
            device=device,
            visible_devices=place.gpu,
            backend=config.backend,
            transport=config.transport,
            kv_network=config.kv_network,
            cores=share.cores,
            lent_cores=share.lent_cores,
            num_threads=share.num_threads,
            block_size=config.block_size,
            num_blocks=place.num_blocks,
            kv_cache_bytes=place.kv_bytes,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            enable_prefix_caching=config.enable_prefix_caching,
            lease_duration_s=config.kv_lease_duration,
            stop_grace_s=config.drain_grace + HANDOVER_S,
            log_level=config.log_level,
        )
        for (worker_id, role), share, place in zip(
            config.pools.worker_ids(key), shares, places, strict=True
        )
    )
    workers += plan_stores(config, workers[0], partial(count_blocks, config, model))
    template = place_template(config.chat_template, run_directory, key)
    check_template(Path(model.directory), template)
    spec = _coordinator(config, model, control, port, max_model_len, template)
    return Plan(*with_adapters(config, spec, workers, key), config.standby_workers)


def _shares(config: ServeConfig, host: Host, *, lends: bool) -> list[Share]:
    """Each worker's cores."""
    shares = share_cores(config.cpu_affinity, config.pools.total, host.cores, host.quota)
    return lend_cores(shares) if lends else shares


@dataclass(frozen=True)
class _Place:
    """One worker's KV pool, and the UUID of its GPU."""

    kv_bytes: int
    num_blocks: int
    gpu: str | None = None


def _on_cpu(config: ServeConfig, model: PreparedModel, host: Host) -> list[_Place]:
    step = planned_step_bytes(config, model, host, has_others=config.pools.total > 1)
    kv_bytes = pool_bytes(config, host, step)
    place = _Place(kv_bytes, count_blocks(config, model, kv_bytes))
    return [place] * config.pools.total


def _tokens_of(config: ServeConfig, places: list[_Place]) -> int | None:
    """Of the smallest pool; None when they have no size yet."""
    return min(place.num_blocks for place in places) * config.block_size or None


def _on_gpus(config: ServeConfig, model: PreparedModel, host: Host) -> list[_Place]:
    utilization = parse_utilization(config.gpu_memory_utilization)
    roles = [role for _, role in config.pools.worker_ids()]
    gpus = assign(len(roles), host.gpus)
    uses = Counter(gpu.uuid for gpu in gpus)
    limits = limits_on(config, "cuda")
    places, taken = [], Counter[str]()
    for role, gpu in zip(roles, gpus, strict=True):
        room = pool_bytes_on(gpu, role, uses[gpu.uuid], utilization, model, limits)
        kv_bytes = room if config.kv_cache_memory is None else config.kv_cache_memory
        if kv_bytes > room:
            raise ConfigError(
                f"--kv-cache-memory: {format_bytes(kv_bytes)} are more than the {format_bytes(room)} that "
                f"--gpu-memory-utilization leaves a {role} worker for its pool"
            )
        places.append(_Place(kv_bytes, count_blocks(config, model, kv_bytes), gpu.uuid))
        taken[gpu.uuid] += (
            int(utilization.part(role, uses[gpu.uuid]) * gpu.total_bytes) - room + kv_bytes
        )
    check_free(host.gpus, taken)
    return places


def device_of(config: ServeConfig, host: Host) -> str:
    """cpu or cuda; ConfigError when a GPU is asked for and cannot be used."""
    reason = obstacle(host.gpus)
    if config.device == "cuda" and reason is not None:
        raise ConfigError(f"--device cuda: {reason}; --device auto computes on the CPU then")
    on_gpu = config.device == "cuda" or (
        config.device == "auto" and config.backend == "auto" and reason is None
    )
    if config.device == "cuda" and config.backend != "auto":
        raise ConfigError(
            f"--backend {config.backend}: it computes on CPUs; leave it out, or --device"
        )
    if config.load_format == "dummy" and not on_gpu:
        raise ConfigError(
            "--load-format: dummy weights are made on a GPU; use --device cuda, or auto"
        )
    return "cuda" if on_gpu else "cpu"


def limits_on(config: ServeConfig, device: str) -> tuple[int, int]:
    """Most tokens and most sequences of one step."""
    tokens, sequences = (8192, 256) if device == "cuda" else (512, 64)
    return config.max_num_batched_tokens or tokens, config.max_num_seqs or sequences


def _coordinator(
    config: ServeConfig,
    model: PreparedModel,
    control: str,
    port: int,
    max_model_len: int,
    template: str | None,
) -> CoordinatorSpec:
    return CoordinatorSpec(
        model=model,
        control=control,
        host=config.host,
        port=port,
        expected=_expected(config.pools),
        max_model_len=max_model_len,
        block_size=config.block_size,
        api_keys=config.api_key,
        admin_api_keys=config.admin_api_key,
        ssl_certfile=_absolute(config.ssl_certfile, "--ssl-certfile"),
        ssl_keyfile=_absolute(config.ssl_keyfile, "--ssl-keyfile"),
        ssl_ca_certs=_absolute(config.ssl_ca_certs, "--ssl-ca-certs"),
        proxies=config.forwarded_allow_ips,
        keys_db=_absolute(config.keys_db, "--keys-db"),
        router_config=_absolute(config.router_config, "--router-config"),
        prices=config.price,
        ledger_failure=config.ledger_failure,
        checks_host=bool(config.auth or config.allowed_hosts),
        allowed_hosts=(config.host, *names_in(config.allowed_hosts)),
        allowed_origins=names_in(config.allowed_origins),
        allowed_methods=names_in(config.allowed_methods),
        allowed_headers=names_in(config.allowed_headers),
        allow_credentials=config.allow_credentials,
        keep_alive_s=config.timeout_keep_alive,
        max_queued_requests=config.max_queued_requests,
        max_first_token_s=config.max_first_token_wait,
        local_prefill=config.local_prefill == "auto",
        prefix_caching=config.enable_prefix_caching,
        drain_grace_s=config.drain_grace,
        autoscale=config.autoscale,
        autoscale_dry_run=config.autoscale_dry_run,
        slo=config.slo,
        chat_template=template,
        tool_call_parser=config.tool_call_parser,
        reasoning_parser=config.reasoning_parser,
        tool_prompt=config.tool_prompt,
        pooling=config.pooling,
        allow_special_tokens_in_content=config.allow_special_tokens_in_content,
        log_level=config.log_level,
        root_path=config.root_path,
        otlp_traces_endpoint=config.otlp_traces_endpoint,
        seed=random_seed() if config.seed is None else config.seed,
    )


def _expected(pools: Pools) -> dict[Role, int]:
    wanted = {Role.PREFILL: pools.prefill, Role.DECODE: pools.decode}
    return wanted | ({Role.STORE: pools.store} if pools.store else {})


def _absolute(path: str | None, option: str) -> str | None:
    """For a process that may begin elsewhere."""
    return None if path is None else str(path_at(path, option).absolute())


def planned_step_bytes(
    config: ServeConfig, model: PreparedModel, host: Host, *, has_others: bool
) -> int:
    """What a CPU worker's largest step takes beside its pool; others may lend it their cores."""
    lent = len(host.cores) if config.lend_cores and has_others else 0
    return step_bytes_of(model, *limits_on(config, "cpu"), lent)


def pool_bytes(config: ServeConfig, host: Host, step_bytes: int = 0) -> int:
    """Bytes of one worker's KV pool in host memory, checked against what is free now, together with what a step takes."""
    workers, stores = config.pools.total, config.pools.store
    chosen = config.kv_cache_memory
    kept = stores * config.kv_store.dram_bytes if config.kv_store is not None else 0
    pools = workers if config.kv_store is not None else workers + stores
    left = host.available_bytes - kept
    kv_bytes = default_kv_bytes(left, pools) if chosen is None else chosen
    check_fits(kv_bytes, pools, host.available_bytes, kept, step_bytes)
    return kv_bytes


def count_blocks(
    config: ServeConfig, model: PreparedModel, kv_bytes: int, flag: str = "--kv-cache-memory: "
) -> int:
    """Whole blocks in `kv_bytes`; at least two, so that a prompt and its output have room."""
    element_bytes = ELEMENT_BYTES["bfloat16" if model.dtype == "bfloat16" else "float32"]
    block_bytes = config.block_size * model.config.kv_bytes_per_token(element_bytes)
    if kv_bytes < 2 * block_bytes:
        raise ConfigError(
            f"{flag}{format_bytes(kv_bytes)} holds fewer than two blocks of "
            f"{format_bytes(block_bytes)}; give at least {format_bytes(2 * block_bytes)}"
        )
    return kv_bytes // block_bytes


def context_length(config: ServeConfig, model: PreparedModel, kv_tokens: int | None) -> int:
    """Longest sequence: as asked and possible, else the model's own, at most what one pool holds, where that is known."""
    own, asked = model.config.max_position_embeddings, config.max_model_len
    if asked is None:
        return own if kv_tokens is None else min(own, kv_tokens)
    if asked > own:
        raise ConfigError(
            f"--max-model-len: {asked} is more than the {own} that {model.name} was made for"
        )
    if kv_tokens is not None and asked > kv_tokens:
        raise ConfigError(
            f"--max-model-len: {asked} tokens do not fit in a KV pool of {kv_tokens}; "
            "give a smaller length or a larger --kv-cache-memory"
        )
    return asked


def place_template(chosen: str | None, run_directory: Path, key: str = "") -> str | None:
    """Path of the chat template: the file that was named, or one made of the text that was given."""
    if chosen is None:
        return None
    if is_template_text(chosen):
        placed = run_directory / f"{key}chat_template.jinja"
        placed.write_text(chosen, encoding="utf-8")
        return str(placed)
    return str(_template_file(chosen))


def is_template_text(chosen: str) -> bool:
    """Whether --chat-template has a template itself instead of a file's name."""
    return "{{" in chosen or "{%" in chosen


def _template_file(chosen: str) -> Path:
    path = path_at(chosen, "--chat-template")
    if not path.is_file():
        raise ConfigError(
            f"--chat-template: there is no file {path}, and it is no Jinja text either"
        )
    return path.resolve()


def check_chosen_template(chosen: str | None) -> None:
    """ConfigError when --chat-template cannot be used, told before the model is read."""
    if chosen is None:
        return
    path = None if is_template_text(chosen) else _template_file(chosen)
    try:
        text = chosen if path is None else path.read_text(encoding="utf-8")
        try_template(ChatTemplate({"default": text}, {}), SystemClock(), EdgeLimits())
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--chat-template: {error}") from error


def check_template(directory: Path, chosen: str | None) -> None:
    """ConfigError for a template that cannot be used; nothing has been started for it yet."""
    template = ChatTemplate.from_directory(directory, Path(chosen) if chosen else None)
    try_template(template, SystemClock(), EdgeLimits())


def next_share(
    workers: list[WorkerSpec], host_cores: tuple[int, ...], alone: int = 1
) -> tuple[int, ...]:
    """Cores for one worker more: those least used by the workers now there; `alone` of them when there is none."""
    used = dict.fromkeys(host_cores, 0)
    for worker in workers:
        for core in worker.cores:
            used[core] = used.get(core, 0) + 1
    width = min((len(worker.cores) for worker in workers if worker.role.computes), default=alone)
    return tuple(sorted(sorted(used, key=lambda core: (used[core], core))[:width]))

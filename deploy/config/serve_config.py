"""The one frozen configuration of `baton serve`. Owns precedence: command line > environment > file > defaults.

Where the model says something (its length, its sampling defaults), that stands between the file and
the built-in defaults; it is known only once the model is prepared, so `deploy.launch.plan` fills it in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deploy.config.autoscale import limits_of, targets_of
from deploy.config.models import KEY, SHARED_NAMES, Entry, Version, entries_named, entries_of
from deploy.config.options import ALIASES, BY_NAME, OPTIONS
from deploy.config.refusals import REFUSALS
from deploy.config.spelling import did_you_mean
from deploy.config.topology import Pools
from protocol.addresses import is_loopback
from protocol.errors import ConfigError
from protocol.roles import Role

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from deploy.config.kv_store import KvStore
    from deploy.config.option import Option

DEFAULT = "default"


@dataclass(frozen=True)
class ServeConfig:
    """Every option of `baton serve`, resolved; None where only the model or the host can tell."""

    model: str
    pd: Pools
    prefill_replicas: int | None
    decode_replicas: int | None
    host: str
    port: int
    served_model_name: tuple[str, ...]
    dtype: str
    quantization: str
    max_model_len: int | None
    block_size: int
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    kv_cache_memory: int | None
    kv_store: KvStore | None
    enable_prefix_caching: bool
    seed: int | None
    device: str
    gpu_memory_utilization: str
    load_format: str
    backend: str
    transport: str
    kv_network: str
    local_prefill: str
    cpu_affinity: str
    lend_cores: bool
    launcher: str
    ray_address: str
    ray_placement: str
    ray_worker_cpus: float | None
    kv_lease_duration: float
    drain_grace: float
    standby_workers: int
    autoscale: tuple[str, ...]
    autoscale_dry_run: bool
    slo: tuple[str, ...]
    max_loaded_models: int | None
    memory_budget: int | None
    models_autoload: bool
    keep_alive: float
    max_queued_requests: int
    max_first_token_wait: float
    api_key: tuple[str, ...]
    admin_api_key: tuple[str, ...]
    ssl_certfile: str | None
    ssl_keyfile: str | None
    ssl_ca_certs: str | None
    forwarded_allow_ips: tuple[str, ...]
    keys_db: str | None
    router_config: str | None
    price: tuple[str, ...]
    ledger_failure: str
    allowed_hosts: tuple[str, ...]
    allowed_origins: tuple[str, ...]
    allowed_methods: tuple[str, ...]
    allowed_headers: tuple[str, ...]
    allow_credentials: bool
    timeout_keep_alive: float
    auth: bool
    chat_template: str | None
    tool_call_parser: str
    reasoning_parser: str
    tool_prompt: str
    pooling: str
    allow_special_tokens_in_content: bool
    enable_lora: bool
    lora_modules: tuple[str, ...]
    max_loras: int
    max_lora_rank: int
    otlp_traces_endpoint: str | None
    root_path: str
    log_level: str
    shutdown_timeout: float
    version: Version | None = None

    @property
    def on_demand(self) -> bool:
        """Whether models come and go."""
        return self.max_loaded_models is not None or self.memory_budget is not None

    def called(self, served_names: tuple[str, ...]) -> tuple[str, ...]:
        """What clients and prices call the model that is served under these names."""
        return served_names if self.version is None else self.version.names

    @property
    def pools(self) -> Pools:
        """`pd`, with what --prefill-replicas and --decode-replicas say instead, and the store that --kv-store asks for."""
        prefill = self.pd.prefill if self.prefill_replicas is None else self.prefill_replicas
        decode = self.pd.decode if self.decode_replicas is None else self.decode_replicas
        return Pools(prefill, decode, self.pd.store or int(self.kv_store is not None))


@dataclass(frozen=True)
class Resolved:
    """A configuration and, for every option's name, where its value came from. `models` has each model's own."""

    config: ServeConfig
    sources: dict[str, str]
    models: tuple[ServeConfig, ...] = ()


def resolve(
    command_line: Mapping[str, Any],
    environment: Mapping[str, str],
    config_file: Path | None = None,
    models: Sequence[str] = (),
) -> Resolved:
    """Merge all sources. `command_line` maps option names to texts (a list for several), `models` are several named there;
    ConfigError names the flag, variable or key that is wrong."""
    given: dict[str, tuple[Any, str]] = {}
    found = read_file(config_file) if config_file else {}
    entries = entries_of(found.pop(KEY), f"{config_file}: {KEY}") if KEY in found else []
    if models:
        entries = entries_named(models)
    elif "model" in command_line:
        entries = []
    for name, raw in found.items():
        given[name] = (parse_yaml(BY_NAME[name], raw, f"{config_file}: {name}"), str(config_file))
    for option in OPTIONS:
        if option.variable in environment:
            raw = environment[option.variable]
            given[option.name] = (
                parse_text(option, raw, option.variable),
                f"environment {option.variable}",
            )
    for name, raw in command_line.items():
        given[name] = (parse_text(BY_NAME[name], raw, f"--{name}"), "command line")
    if entries:
        given["model"] = (str(entries[0].options["model"]), KEY)
    values = {o.field: given[o.name][0] if o.name in given else o.default for o in OPTIONS}
    sources = {o.name: given[o.name][1] if o.name in given else DEFAULT for o in OPTIONS}
    config = ServeConfig(**values)
    own = [_own_values(entry) for entry in entries] or [{}]
    configs = _configs_of(config, own)
    for one in (config, *configs):
        _check(one)
    return Resolved(config if configs[1:] else configs[0], sources, configs)


def _own_values(entry: Entry) -> dict[str, Any]:
    """By field."""
    values: dict[str, Any] = {
        BY_NAME[name].field: parse_yaml(BY_NAME[name], raw, f"{entry.where}: {name}")
        for name, raw in entry.options.items()
    }
    if entry.version is not None:
        values |= {"version": entry.version, "served_model_name": (entry.version.spelled,)}
    return values


def _configs_of(
    shared: ServeConfig, own_values: Sequence[dict[str, Any]]
) -> tuple[ServeConfig, ...]:
    """Each model's configuration: everybody's, with its own values (by field) instead. ConfigError for options that several
    models cannot share."""
    if len(own_values) > 1:
        for field in SHARED_NAMES:
            if getattr(shared, field):
                name = field.replace("_", "-")
                told = f"--{name}: there are several models; say it of one of them, under `models:`"
                raise ConfigError(told)
    if len(own_values) > 1 or shared.on_demand:
        _check_fleet(shared)
    return tuple(replace(shared, **own) for own in own_values)


def _check_fleet(shared: ServeConfig) -> None:
    if shared.launcher == "ray":
        raise ConfigError(
            "--launcher ray: it runs one model; serve several with --launcher local, or a server for each"
        )
    if shared.device == "cuda":
        raise ConfigError("--device cuda: several models are served on CPUs; serve each by itself")
    if shared.autoscale:
        raise ConfigError("--autoscale: it sizes the pools of one model; leave it out with several")


def parse_text(option: Option, raw: Any, where: str) -> Any:
    """An option's value from the command line or the environment; ConfigError names `where`."""
    if isinstance(raw, bool):
        return raw
    texts = raw if isinstance(raw, list) else raw.split(",") if option.kind == "several" else [raw]
    try:
        parsed = [
            option.parse(text.strip() if option.kind == "several" else text) for text in texts
        ]
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    return tuple(parsed) if option.kind == "several" else parsed[-1]


def parse_yaml(option: Option, raw: Any, where: str) -> Any:
    """An option's value from a YAML scalar or, for several, a list."""
    if isinstance(raw, bool) and option.kind == "switch":
        return raw
    if isinstance(raw, list) and option.kind == "several":
        for index, item in enumerate(raw):
            if item is None or isinstance(item, bool | list):
                raise ConfigError(f"{where}[{index}]: {item!r} is no text; put it in quotes")
        texts = [json.dumps(item) if isinstance(item, dict) else str(item) for item in raw]
        return parse_text(option, texts, where)
    if raw is None or isinstance(raw, bool | list | dict):
        raise ConfigError(f"{where}: {raw!r} is not a value for this option")
    return parse_text(option, [str(raw)], where)


def read_file(path: Path) -> dict[str, Any]:
    """The options a YAML file sets, under their proper names, and `models`; ConfigError on unknown keys."""
    from coordinator.upstreams.documents import read_document  # noqa: PLC0415 - 30 ms that only a config file costs

    if not path.is_file():
        raise ConfigError(f"--config: there is no file {path}")
    try:
        document = read_document(path.read_text(encoding="utf-8"), as_written=True)
    except OSError as error:
        raise ConfigError(f"--config: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not YAML: it is not in UTF-8") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: write options as `name: value` lines")
    found: dict[str, Any] = {}
    for key, value in document.items():
        name = KEY if key == KEY else _known(str(key), path)
        if name in found:
            raise ConfigError(f"{path}: {name} is there twice, once as {key}; keep one")
        found[name] = value
    return found


def _known(key: str, path: Path) -> str:
    name = key.replace("_", "-").removeprefix("--")
    name = ALIASES.get(name, name)
    if name in BY_NAME:
        return name
    for refusal in REFUSALS:
        if refusal.name == name:
            raise ConfigError(f"{path}: {key}: {refusal.reason}")
    raise ConfigError(f"{path}: unknown key {key!r}{did_you_mean(name, [*BY_NAME, *ALIASES])}")


def _check(config: ServeConfig) -> None:
    """What no single option can see."""
    if config.pools.total == 0 or config.pools.decode == 0:
        raise ConfigError("--pd: at least one decode worker is needed, as in 1p1d or 0p1d")
    if config.transport == "shm" and not (config.pools.prefill or config.pools.store):
        raise ConfigError(
            "--transport: 0p1d moves no KV blocks; leave --transport out, or use --pd 1p1d"
        )

    _check_store(config)
    _check_adapters(config)
    _check_quantization(config)
    _check_keys(config)
    if config.admin_api_key and not config.api_key and config.keys_db is None:
        raise ConfigError("--admin-api-key: without --api-key everybody may ask; set both")
    if set(config.admin_api_key) & set(config.api_key):
        raise ConfigError("--admin-api-key: must differ from every --api-key")
    if config.ssl_certfile is None and (config.ssl_keyfile or config.ssl_ca_certs):
        raise ConfigError("--ssl-keyfile, --ssl-ca-certs: need the certificate's --ssl-certfile")
    if config.keys_db is not None and config.api_key and not config.admin_api_key:
        raise ConfigError(
            "--keys-db: beside --api-key it needs an --admin-api-key: else every client could make keys and read all usage; "
            "set one, or leave --api-key out"
        )
    if config.price and config.keys_db is None:
        raise ConfigError("--price: costs are booked in --keys-db; name a file for it")
    _check_autoscale(config)
    _check_standby(config)


def _check_store(config: ServeConfig) -> None:
    if config.pools.store and not config.enable_prefix_caching:
        raise ConfigError(
            "--kv-store: blocks are found by their content, which --no-enable-prefix-caching turns off; leave one out"
        )
    if config.pools.store and config.device == "cuda":
        raise ConfigError(
            "--kv-store: a store keeps blocks of workers that compute on the CPU; use --device cpu, or leave it out"
        )


def _check_adapters(config: ServeConfig) -> None:
    if not config.models_autoload and not config.on_demand:
        raise ConfigError(
            "--no-models-autoload is for models that come and go; give --max-loaded-models or --memory-budget, too"
        )
    if config.lora_modules and not config.enable_lora:
        raise ConfigError("--lora-modules: needs --enable-lora")
    if config.enable_lora and config.launcher == "ray":
        raise ConfigError("--enable-lora: adapters are served by --launcher local only")


def _check_quantization(config: ServeConfig) -> None:
    if config.quantization == "none":
        return
    if config.device == "cuda":
        raise ConfigError(
            f"--quantization {config.quantization}: it is computed on CPUs; use --device cpu, or leave it out"
        )
    if config.backend == "torch":
        raise ConfigError(
            f"--quantization {config.quantization}: --backend torch computes without it; leave one out"
        )


def _check_keys(config: ServeConfig) -> None:
    """Nothing listens beyond loopback without keys, unless the operator vouches for who can reach it."""
    has_keys = bool(config.api_key) or config.keys_db is not None
    if config.auth and not has_keys and not is_loopback(config.host):
        raise ConfigError(
            f"--host: {config.host} is reached from other hosts and there is no --api-key or --keys-db; set BATON_API_KEY "
            "to what clients must send, or say --no-auth if something else decides who reaches this port"
        )


def names_in(given: Iterable[str]) -> tuple[str, ...]:
    """Names that were given one by one, or as vLLM takes them, in one JSON list."""
    pieces = (piece.strip(" []\"'") for text in given for piece in text.split(","))
    return tuple(piece for piece in pieces if piece)


def _check_standby(config: ServeConfig) -> None:
    """Only the local launcher keeps processes ready, and what is loaded once for all is loaded into host memory."""
    if config.standby_workers and config.launcher == "ray":
        raise ConfigError(
            "--standby-workers: only with --launcher local; Ray places every worker on a node of its choice when it is ordered"
        )
    if config.standby_workers and config.device == "cuda":
        raise ConfigError(
            "--standby-workers: only on CPU; on a GPU every process has weights of its own, which would take the memory of a pool"
        )


def _check_autoscale(config: ServeConfig) -> None:
    """The pools must begin within their ranges."""
    targets_of(config.slo)
    if not config.autoscale:
        if config.autoscale_dry_run:
            raise ConfigError(
                "--autoscale-dry-run: needs --autoscale with the ranges that it may use"
            )
        return
    limits, pools = limits_of(config.autoscale), config.pools
    for role, count in ((Role.PREFILL, pools.prefill), (Role.DECODE, pools.decode)):
        allowed = limits.of(role)
        if not allowed.least <= count <= allowed.most:
            raise ConfigError(
                f"--autoscale: {role}={allowed.least}..{allowed.most} does not hold the {count} of "
                f"--pd {pools}; begin within the range"
            )
    if pools.total > limits.budget:
        raise ConfigError(f"--autoscale: --pd {pools} is more than total={limits.budget}")

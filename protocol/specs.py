"""What a child process is told at its start. Owns the two files that a launcher writes, mode 0600, in its run directory."""

from __future__ import annotations

from collections.abc import Sequence  # noqa: TC003 - msgspec reads the annotations

import msgspec

from protocol.channel_keys import ChannelKeys
from protocol.model_config import ModelConfig
from protocol.quantization import Quantization
from protocol.roles import Role


class PreparedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model made ready on this host: everything in `directory`, what it is called, and what to tell who starts it."""

    name: str
    served_names: tuple[str, ...]
    directory: str
    config: ModelConfig
    dtype: str
    weights_hash: str
    tokenizer_hash: str
    warnings: tuple[str, ...] = ()
    quantization: Quantization = Quantization.NONE


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One worker. `cores` empty means not pinned; `lent_cores` are those of others that may help, none for a worker that
    does not lend its own either; `adapters_directory` has the contents of adapters, "" for none,
    of which `max_adapters` stay mapped without being used; `control` is the coordinator's ZeroMQ endpoint;
    `weights_fd` is an inherited memfd
    that all workers of the host share; `device` is cpu or cuda, `visible_devices` the UUID of the worker's GPU; `peer_host` is the address that tcp listeners bind and advertise; `transport` is auto or a name.
    A cluster on several hosts has a tcp `control`, `keys`, and a `peer_host` that the others reach; `kv_network` is encrypted or trusted.
    A store's disk tier lies in `store_path`, if it has one.
    After `stop_grace_s` a worker that was told to end ends, whatever it still has.
    Without a parent that holds it: `generation` grows from start to start of one worker id, and the worker ends after
    `silence_limit_s` without a word of the coordinator."""

    worker_id: str
    role: Role
    model: PreparedModel
    control: str
    run_directory: str
    backend: str = "auto"
    transport: str = "auto"
    peer_host: str = "127.0.0.1"
    kv_network: str = "encrypted"
    keys: ChannelKeys | None = None
    cores: tuple[int, ...] = ()
    lent_cores: tuple[int, ...] = ()
    num_threads: int = 1
    block_size: int = 16
    num_blocks: int = 0
    kv_cache_bytes: int = 0
    adapters_directory: str = ""
    max_adapters: int = 32
    max_model_len: int = 8192
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    enable_prefix_caching: bool = True
    lease_duration_s: float = 30.0
    weights_fd: int | None = None
    device: str = "cpu"
    visible_devices: str | None = None
    generation: int = 0
    silence_limit_s: float | None = None
    stop_grace_s: float = 35.0
    store_path: str = ""
    store_disk_bytes: int = 0
    log_level: str = "info"


class RevisionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is one revision of: `names` are what clients call all of them, `weight` is its part of new conversations,
    `standing` where it was, and whether a rollback goes to it: as `is_stable`, or without candidates as `is_previous`
    (coordinator.cluster.release)."""

    names: tuple[str, ...]
    revision: str
    weight: float
    standing: str = "serving"
    is_stable: bool = False
    is_previous: bool = False


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One of several models. Its `key` begins the names of its workers. Where models come and go it needs `needed_bytes`,
    `worker_bytes` of them for each worker, and stays `keep_alive_s` without use, for ever if that is below zero. `kv_cache_bytes` is each worker's pool, `length_limit` what
    the operator allows a sequence. One that a running server was given has workers like those of the model whose key is
    `like`. `lora_modules` are names and directories of adapters, whose contents are kept in `adapters_directory`: "" where there are none."""

    key: str
    model: PreparedModel
    expected: dict[Role, int]
    max_model_len: int
    block_size: int
    chat_template: str | None = None
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    tool_prompt: str = "auto"
    pooling: str = "none"
    needed_bytes: int = 0
    worker_bytes: int = 0
    keep_alive_s: float = -1.0
    revision: RevisionSpec | None = None
    kv_cache_bytes: int = 0
    length_limit: int | None = None
    like: str | None = None
    adapters_directory: str = ""
    lora_modules: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """What its cluster is called."""
        return self.model.served_names[0]


class CoordinatorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The coordinator. `expected` is how many workers of each role it waits for before it is ready;
    after `owner_silence_s` without a launcher it ends, and its workers with it; `checks_host` is for a server that
    neither keys nor an operator's word guard. `others` are models beside `model`, whose workers' names begin with `key`
    then. With a `memory_budget_bytes` they come and go, `max_loaded_models` at once, and
    with `models_autoload` by themselves. `no_rollouts` says why
    no revision can be added, "" where it can."""

    model: PreparedModel
    control: str
    host: str
    port: int
    expected: dict[Role, int]
    max_model_len: int
    block_size: int
    api_keys: tuple[str, ...] = ()
    admin_api_keys: tuple[str, ...] = ()
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_ca_certs: str | None = None
    proxies: tuple[str, ...] = ()
    keys_db: str | None = None
    router_config: str | None = None
    adapters_directory: str = ""
    lora_modules: tuple[tuple[str, str], ...] = ()
    max_lora_rank: int = 64
    prices: tuple[str, ...] = ()
    ledger_failure: str = "serve"
    checks_host: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False
    keep_alive_s: float = 75.0
    max_queued_requests: int = 1024
    max_first_token_s: float = 60.0
    local_prefill: bool = True
    prefix_caching: bool = True
    drain_grace_s: float = 30.0
    autoscale: tuple[str, ...] = ()
    autoscale_dry_run: bool = False
    slo: tuple[str, ...] = ()
    chat_template: str | None = None
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    tool_prompt: str = "auto"
    pooling: str = "none"
    allow_special_tokens_in_content: bool = False
    log_level: str = "info"
    root_path: str = ""
    otlp_traces_endpoint: str | None = None
    owner_silence_s: float | None = None
    keys: ChannelKeys | None = None
    seed: int = 0
    key: str = ""
    others: tuple[ModelSpec, ...] = ()
    needed_bytes: int = 0
    worker_bytes: int = 0
    model_keep_alive_s: float = -1.0
    memory_budget_bytes: int | None = None
    max_loaded_models: int | None = None
    models_autoload: bool = True
    revision: RevisionSpec | None = None
    kv_cache_bytes: int = 0
    length_limit: int | None = None
    no_rollouts: str = ""

    def serving(self, models: Sequence[ModelSpec]) -> CoordinatorSpec:
        """The same coordinator with these models, the first of which is its first in another place at most."""
        first, *others = models
        assert first.key == self.key, "what a coordinator began with stays its first"
        return msgspec.structs.replace(self, revision=first.revision, others=tuple(others))

    @property
    def models(self) -> tuple[ModelSpec, ...]:
        """All of them, the first one first."""
        first = ModelSpec(
            key=self.key,
            model=self.model,
            expected=self.expected,
            max_model_len=self.max_model_len,
            block_size=self.block_size,
            chat_template=self.chat_template,
            tool_call_parser=self.tool_call_parser,
            reasoning_parser=self.reasoning_parser,
            tool_prompt=self.tool_prompt,
            pooling=self.pooling,
            needed_bytes=self.needed_bytes,
            worker_bytes=self.worker_bytes,
            keep_alive_s=self.model_keep_alive_s,
            revision=self.revision,
            kv_cache_bytes=self.kv_cache_bytes,
            length_limit=self.length_limit,
            adapters_directory=self.adapters_directory,
            lora_modules=self.lora_modules,
        )
        return (first, *self.others)

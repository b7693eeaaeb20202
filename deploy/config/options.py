"""Every option of `baton serve`, once. Owns names, aliases, parsers and defaults.

The command line, the environment, the YAML file and `--print-config` are all made from this table;
which of them wins is decided in `deploy.config.serve_config`.
"""

from __future__ import annotations

from coordinator.edge.http.below_path import prefix_text
from deploy.config.autoscale import DEFAULT_SLO, autoscale_text, slo_text
from deploy.config.front_door import ACCOUNTS, SECURITY, TLS
from deploy.config.kv_store import parse_kv_store
from deploy.config.lora import lora_module
from deploy.config.on_demand import ON_DEMAND
from deploy.config.option import OFF, ON, Option
from deploy.config.topology import Pools, parse_pd
from deploy.config.values import (
    DEFAULT_UTILIZATION,
    Choice,
    block_size,
    cpus,
    dtype,
    load_format,
    parse_affinity,
    parse_bytes,
    parse_ray_address,
    pooling,
    quantization,
    reasoning_parser,
    seconds,
    switch,
    text,
    tool_call_parser,
    tool_prompt,
    traces_endpoint,
    utilization_text,
    whole,
)

EMBEDDED_MODEL = "smollm2-135m"


GROUPS = {
    "model": (
        Option("model", text, EMBEDDED_MODEL, "what to serve", ("model-path",), "MODEL"),
        Option(
            "served-model-name", text, (), "names clients may use", kind="several", metavar="NAME"
        ),
        Option(
            "dtype",
            dtype,
            "auto",
            "auto, float32 or bfloat16; auto is bfloat16 where the processor computes in it",
        ),
        Option(
            "quantization",
            quantization,
            "none",
            "int8: matrices of bytes, with a scale for 64 weights each: half the memory, faster on CPUs",
        ),
        Option(
            "load-format",
            load_format,
            "auto",
            "auto, or dummy: random weights of the model's shape, for measuring on a GPU",
            metavar="FORMAT",
        ),
        Option(
            "max-model-len",
            whole(1),
            None,
            "longest prompt plus output (default: the model's)",
            ("context-length",),
            "TOKENS",
        ),
        Option("chat-template", text, None, "Jinja template: a file, or the text itself"),
        Option(
            "tool-call-parser",
            tool_call_parser,
            "auto",
            "how the model writes calls of tools (default: as its template says)",
        ),
        Option(
            "reasoning-parser",
            reasoning_parser,
            "auto",
            "how the model writes what it thinks (default: as its template says)",
        ),
        Option(
            "tool-prompt",
            tool_prompt,
            "auto",
            "tells tools in the system message where the template has no room for them:"
            " hermes, or off (default: hermes for the embedded model, else off)",
        ),
        Option(
            "pooling",
            pooling,
            "none",
            "embeddings: the mean of a text's last hidden states, that of its last token, or of its first (cls)",
        ),
        Option(
            "allow-special-tokens-in-content",
            switch,
            OFF,
            "recognize special tokens in what messages bring, as other servers do",
            kind="switch",
        ),
        Option(
            "seed", whole(0), None, "seed of requests that bring none (default: drawn)", metavar="N"
        ),
    ),
    "adapters": (
        Option(
            "enable-lora",
            switch,
            OFF,
            "answer with LoRA adapters, too: a request's model is the adapter's name",
            kind="switch",
        ),
        Option(
            "lora-modules",
            lora_module,
            (),
            'adapters to load at the start, as NAME=DIRECTORY or {"name": …, "path": …}',
            kind="several",
            metavar="NAME=PATH",
        ),
        Option(
            "max-loras",
            whole(1, 4096),
            32,
            "adapters that stay in a worker's memory while nobody asks for them",
            ("max-cpu-loras",),
            "N",
        ),
        Option("max-lora-rank", whole(1, 64), 64, "largest rank of an adapter", metavar="RANK"),
    ),
    "pools": (
        Option(
            "pd",
            parse_pd,
            Pools(1, 1),
            "workers of each pool: 1p1d, 2p2d; 0p1d is one colocated worker; 1p1d1s has a KV store too",
            metavar="xPyDzS",
        ),
        Option(
            "prefill-replicas", whole(0, 256), None, "prefill workers, instead of --pd", metavar="N"
        ),
        Option(
            "decode-replicas", whole(1, 256), None, "decode workers, instead of --pd", metavar="N"
        ),
        Option(
            "local-prefill",
            Choice("auto", "off"),
            "auto",
            "auto: a decode worker computes a prompt where that is sooner than waiting for prefill; or off",
        ),
        Option(
            "kv-lease-duration",
            seconds,
            30.0,
            "how long finished blocks are promised to the decode side",
            metavar="SECONDS",
        ),
    ),
    "scaling": (
        Option(
            "autoscale",
            autoscale_text,
            (),
            "size the pools by load, as prefill=1..4,decode=1..8 or with total=10; from 0: none while idle (default: off)",
            kind="several",
            metavar="RANGE",
        ),
        Option(
            "autoscale-dry-run",
            switch,
            OFF,
            "with --autoscale: say what it would do, and do nothing",
            kind="switch",
        ),
        Option(
            "slo",
            slo_text,
            DEFAULT_SLO,
            "what --autoscale holds, in ms: ttft:2000 tpot:100, and goal:0.9 of all requests",
            kind="several",
            metavar="TARGET",
        ),
        Option(
            "standby-workers",
            whole(0, 64),
            0,
            "processes that have loaded everything and become a worker at once when one is needed (CPU, --launcher local)",
            metavar="N",
        ),
        Option(
            "drain-grace",
            seconds,
            30.0,
            "how long a leaving worker goes on with answers that no other has room for",
            metavar="SECONDS",
        ),
    ),
    "memory and batches": (
        Option(
            "kv-cache-memory",
            parse_bytes,
            None,
            "KV pool of each worker, as 2GiB (default: a part of free memory)",
            ("kv-cache-memory-bytes",),
            "SIZE",
        ),
        Option(
            "kv-store",
            parse_kv_store,
            None,
            "keep KV blocks of all workers in a store: dram=2GiB, or with disk=20GiB,path=DIR below it (default: no store)",
            metavar="SIZES",
        ),
        Option(
            "gpu-memory-utilization",
            utilization_text,
            DEFAULT_UTILIZATION,
            "part of a GPU for all its workers, or each role's as prefill=0.3,decode=0.6",
            ("mem-fraction-static",),
            "PART",
        ),
        Option("block-size", block_size, 16, "tokens in one KV block", ("page-size",), "TOKENS"),
        Option(
            "enable-prefix-caching", switch, ON, "reuse KV blocks of equal prefixes", kind="switch"
        ),
        Option(
            "max-num-seqs",
            whole(1, 4096),
            None,
            "sequences running at once on a worker (default: 64, on a GPU 256)",
            ("max-running-requests",),
            "N",
        ),
        Option(
            "max-num-batched-tokens",
            whole(16, 1 << 20),
            None,
            "tokens in one step: a prefill chunk (default: 512, on a GPU 8192)",
            ("chunked-prefill-size",),
            "N",
        ),
        *ON_DEMAND,
        Option(
            "max-queued-requests",
            whole(0),
            1024,
            "beyond this many waiting requests, answer 429",
            metavar="N",
        ),
        Option(
            "max-first-token-wait",
            seconds,
            60.0,
            "answer 429 where the first token would come later, for the requests before it",
            metavar="SECONDS",
        ),
    ),
    "computing": (
        Option(
            "device",
            Choice("auto", "cpu", "cuda"),
            "auto",
            "auto (a GPU where there is one), cpu or cuda",
        ),
        Option(
            "backend",
            Choice("auto", "cpu", "torch"),
            "auto",
            "auto, cpu (packed weights, C kernel) or torch (reference)",
        ),
        Option(
            "cpu-affinity",
            parse_affinity,
            "auto",
            "auto, none, or cores as 0-3 or one list each as '0-1;2-3'",
            metavar="LIST",
        ),
        Option(
            "lend-cores",
            switch,
            ON,
            "a worker computes on the cores of workers that sleep, too, while they sleep",
            kind="switch",
        ),
    ),
    "network": (
        Option("host", text, "127.0.0.1", "address to listen on"),
        Option("port", whole(0, 65535), 8000, "port to listen on; 0 takes a free one", metavar="N"),
        Option(
            "timeout-keep-alive",
            seconds,
            75.0,
            "how long an idle connection is kept for its client",
            metavar="SECONDS",
        ),
        Option("root-path", prefix_text, "", "path prefix set by a proxy in front"),
        Option(
            "transport",
            Choice("auto", "shm", "zmq", "ucx", "nixl"),
            "auto",
            "how KV blocks travel: auto, shm, zmq, ucx or nixl",
            ("disaggregation-transfer-backend",),
        ),
        Option(
            "kv-network",
            Choice("encrypted", "trusted"),
            "encrypted",
            "between hosts: encrypted; or trusted, where nobody but this cluster is: blocks go in clear",
        ),
    ),
    "security": SECURITY,
    "TLS and proxies": TLS,
    "accounts": ACCOUNTS,
    "processes": (
        Option(
            "launcher",
            Choice("local", "ray"),
            "local",
            "what starts the processes: local (this machine), or ray (a cluster)",
        ),
        Option(
            "ray-address",
            parse_ray_address,
            "auto",
            "auto (RAY_ADDRESS, else a Ray that runs here, else local), local (start one), or HOST:PORT",
            metavar="ADDRESS",
        ),
        Option(
            "ray-placement",
            Choice("auto", "slots", "cpus"),
            "auto",
            "slots (prefill_slot, decode_slot), cpus, or auto: slots where a node offers any",
        ),
        Option(
            "ray-worker-cpus",
            cpus,
            None,
            "CPUs that Ray reserves for a worker (default: 1, and none beside slots)",
            metavar="N",
        ),
        Option(
            "shutdown-timeout",
            seconds,
            2.0,
            "after Ctrl-C or SIGTERM, how long children may take",
            metavar="SECONDS",
        ),
    ),
    "observability": (
        Option(
            "log-level",
            Choice("debug", "info", "warning", "error", "critical"),
            "info",
            "debug, info, warning, error",
            ("uvicorn-log-level",),
        ),
        Option(
            "otlp-traces-endpoint",
            traces_endpoint,
            None,
            "send OpenTelemetry traces there, over OTLP/HTTP: http://127.0.0.1:4318/v1/traces",
            metavar="URL",
        ),
    ),
}
"""As `baton serve --help` shows them."""
OPTIONS = tuple(option for group in GROUPS.values() for option in group)
BY_NAME = {option.name: option for option in OPTIONS}
ALIASES = {alias: option.name for option in OPTIONS for alias in option.aliases}

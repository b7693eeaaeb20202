"""A resolved configuration as a file. Owns how values are written so that `--config` reads them back."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from deploy.config.models import KEY, REVISIONS
from deploy.config.options import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from deploy.config.serve_config import Resolved, ServeConfig


def describe(resolved: Resolved) -> str:
    """Every value and its source, as a YAML file that `--config` takes back."""
    lines = []
    if resolved.models[1:] or resolved.config.version is not None:
        lines += [f"{KEY}:", *_models(resolved.models)]
    for option in OPTIONS:
        value, source = getattr(resolved.config, option.field), resolved.sources[option.name]
        if option.secret and value:
            lines.append(f"# {option.name}: {len(value)} hidden  # {source}")
        elif value is None or value == ():
            lines.append(f"# {option.name}:  # {source}: {_unset(option.name)}")
        else:
            lines.append(f"{option.name}: {_spell(value)}  # {source}")
    return "\n".join(lines)


def _models(models: Sequence[ServeConfig]) -> Iterator[str]:
    """Revisions of one model stand together."""
    for version_names, own in groupby(models, lambda one: one.version and one.version.names):
        if version_names is not None:
            yield f"  - served-model-name: {_spell(version_names)}"
            yield f"    {REVISIONS}:"
        for one in own:
            if one.version is None:
                yield f"  - model: {_spell(one.model)}"
                continue
            yield f"      - revision: {_spell(one.version.revision)}"
            yield f"        weight: {one.version.weight:g}"
            yield f"        model: {_spell(one.model)}"


def _unset(name: str) -> str:
    return {
        "max-model-len": "the model's, at most what the KV pool holds",
        "kv-cache-memory": "10 % of available memory over all workers, 256 MiB to 4 GiB each; on nodes of Ray a part of each node's",
        "served-model-name": "the model's name",
        "chat-template": "the model's",
        "kv-store": "no store",
        "max-num-seqs": "64, on a GPU 256",
        "max-num-batched-tokens": "512, on a GPU 8192",
        "ray-worker-cpus": "1, and none beside slots",
        "lora-modules": "none at the start",
        "seed": "drawn for each request",
        "otlp-traces-endpoint": "no traces",
        "autoscale": "the pools stay as they are",
        "ssl-certfile": "plain HTTP",
        "forwarded-allow-ips": "nobody's X-Forwarded headers count",
        "max-loaded-models": "all stay",
        "memory-budget": "all stay; with max-loaded-models 80 % of what is available",
        "keys-db": "no keys but those of --api-key, and no ledger",
    }.get(name, "none")


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_spell(item) for item in value) + "]"
    if isinstance(value, str) and (
        not value or not value.replace("-", "").replace(".", "").isalnum()
    ):
        return "'" + value.replace("'", "''") + "'"
    return str(value)

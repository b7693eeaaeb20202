"""From flags and environment to a RayChoice. Owns what is asked of the machine before Ray is started or joined."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from deploy.config.topology import (
    has_ray_token,
    path_at,
    ray_address_file,
    ray_address_variable,
)
from deploy.config.values import LOCAL
from deploy.launch.ray.own_ray import MISSING, plan_own_ray
from deploy.launch.ray.ray_address import find_ray
from protocol.errors import ConfigError
from protocol.randomness import random_hex

if TYPE_CHECKING:
    from pathlib import Path

    from deploy.config.serve_config import ServeConfig
    from deploy.launch.ray.own_ray import OwnRay


@dataclass(frozen=True)
class RayChoice:
    """What flags and environment say about Ray; `own` is set when we start it."""

    address: str
    own: OwnRay | None
    environment: dict[str, str]
    launch: str
    placement: str
    worker_cpus: float | None
    model_source: str
    chat_template: str | None
    pin: bool
    shutdown_timeout_s: float
    max_model_len: int | None = None


def choose_ray(config: ServeConfig, directory: Path, num_cores: int) -> RayChoice:
    """Which Ray, and how; ConfigError when it is not installed, or its address cannot be used."""
    if find_spec("ray") is None:
        raise ConfigError(MISSING)
    address = find_ray(config.ray_address, ray_address_variable(), ray_address_file())
    own = plan_own_ray(directory, num_cores) if address == LOCAL else None
    if own is None and config.cpu_affinity not in ("auto", "none"):
        raise ConfigError("--cpu-affinity: lists of cores are for one machine; use auto or none")
    return RayChoice(
        address=address if own is None else own.address,
        own=own,
        environment=own.environment if own else _own_token(config.ray_address),
        launch=random_hex(5),
        placement=config.ray_placement,
        worker_cpus=config.ray_worker_cpus,
        model_source=config.model,
        chat_template=_text_of(config.chat_template),
        pin=config.cpu_affinity == "auto",
        shutdown_timeout_s=config.shutdown_timeout,
        max_model_len=config.max_model_len,
    )


def _own_token(asked: str) -> dict[str, str]:
    """A Ray that was found, not named, gets this user's token if there is one: as Ray's own clients do."""
    return {"RAY_AUTH_MODE": "token"} if asked == "auto" and has_ray_token() else {}


def _text_of(chosen: str | None) -> str | None:
    """The chat template itself: a node of the cluster may not have the file."""
    if chosen is None or "{{" in chosen or "{%" in chosen:
        return chosen
    return path_at(chosen, "--chat-template").read_text(encoding="utf-8")

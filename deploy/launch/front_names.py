"""What clients may ask for by name. Owns the checks of prices and of a router's file against the names of all models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coordinator.accounts.prices import check_names
from deploy.config.topology import all_variables, path_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploy.config.serve_config import ServeConfig


def check_front_names(config: ServeConfig, served_names: Sequence[str]) -> None:
    """Raise ConfigError for a price or a deployment of what is not served, and for a router's file that cannot be used."""
    groups: tuple[str, ...] = ()
    if config.router_config is not None:
        from coordinator.upstreams.settings import check_own, names_of, read_settings  # noqa: PLC0415 - YAML only where it is used

        path = path_at(config.router_config, "--router-config")
        settings = read_settings(path, all_variables())
        check_own(settings, served_names)
        groups = names_of(settings)
    check_names(config.price, tuple(dict.fromkeys((*served_names, *groups))))

"""Which Ray to use. Owns the meaning of --ray-address; must not import Ray.

local            start one, for this machine alone, and end it with Baton
HOST:PORT        join that one
auto             RAY_ADDRESS if it is set, else the one that `ray start` left its address of, else local
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from deploy.config.values import LOCAL, parse_ray_address
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

CONNECT_S = 2.0


def find_ray(asked: str, variable: str | None, left: Path) -> str:
    """HOST:PORT, or `local`. `variable` is RAY_ADDRESS; `left` is the file that `ray start` writes. ConfigError
    when RAY_ADDRESS says what cannot be joined."""
    if asked != "auto":
        return asked
    if variable and variable != "auto":
        try:
            return parse_ray_address(variable)
        except ValueError as error:
            raise ConfigError(f"RAY_ADDRESS: {error}") from None
    if left.is_file():
        address = left.read_text(encoding="utf-8").strip()
        if answers(address):
            return address
    return LOCAL


def answers(address: str) -> bool:
    """Whether somebody listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return False
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError:
        return False
    return True

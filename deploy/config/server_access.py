"""Which running server a command asks, and with which key. Owns the flags and variables of that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.config.parser import typed
from deploy.config.topology import environment
from deploy.config.values import header_key, url
from protocol.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from deploy.config.parser import Parser

DEFAULT_URL = "http://127.0.0.1:8000"


def add_url(parser: Parser) -> None:
    """--url and --api-key."""
    where = f"server (default: {DEFAULT_URL})"
    parser.add_argument("--url", type=typed(url), default=DEFAULT_URL, help=where)
    parser.add_argument(
        "--api-key", type=typed(header_key), metavar="KEY", help="default: BATON_API_KEY"
    )


def add_admin_url(parser: Parser) -> None:
    """The same, and --admin-api-key."""
    add_url(parser)
    parser.add_argument(
        "--admin-api-key",
        type=typed(header_key),
        metavar="KEY",
        help="default: BATON_ADMIN_API_KEY; without one, the API key",
    )


def key(namespace: argparse.Namespace) -> str | None:
    """For a running server: as given, else the first that `baton serve` would take from here."""
    return namespace.api_key or _key_from("BATON_API_KEY")


def admin_key(namespace: argparse.Namespace) -> str | None:
    """The same for what an operator asks; where there is no key of its own, the API key does."""
    return namespace.admin_api_key or _key_from("BATON_ADMIN_API_KEY") or key(namespace)


def _key_from(variable: str) -> str | None:
    found = environment().get(variable)
    try:
        return None if found is None else header_key(found)
    except ValueError as error:
        raise ConfigError(f"{variable}: {error}") from None

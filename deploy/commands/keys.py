"""`baton keys`: make, list, show, rotate and revoke keys, in their file or at a running server. Owns its own command line.

With --keys-db (or BATON_KEYS_DB) the file is changed, and a server that runs on it sees that within a second; with
--url the server is asked, with an admin key.
"""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rich.table import Table

from coordinator.accounts.database import Database, open_database, open_to_read
from coordinator.accounts.terms import (
    SCOPES,
    KeyNotFound,
    KeyRecord,
    KeyTerms,
    make_key,
    make_secret,
    revoked,
    rotated,
)
from deploy.commands.asking import told_by
from deploy.commands.status import plain_console, status_client
from deploy.config.parser import Parser, typed
from deploy.config.topology import environment, path_at
from deploy.config.values import header_key, positive, url, whole
from protocol.clock import wall_time_s
from protocol.errors import BatonError, ConfigError, InvalidRequest

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    import httpx

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw]?)")
DEFAULT_URL = "http://127.0.0.1:8000"


def main(argv: Sequence[str]) -> int:
    """Exit status; a new secret is all that stdout gets, everything else about it goes to stderr."""
    namespace = make_parser().parse_args(list(argv))
    if "act" not in namespace:
        raise ConfigError("keys: say what to do: baton keys create|list|show|rotate|revoke")
    try:
        with open_store(namespace) as store:
            namespace.act(store, namespace)
    except InvalidRequest as error:
        raise BatonError(str(error)) from error
    except sqlite3.Error as error:
        raise BatonError(f"--keys-db: {error}") from error
    return 0


def duration(text: str) -> float:
    """`30d`, `12h`, `90s`: seconds; ValueError otherwise."""
    found = _DURATION.fullmatch(text.strip())
    if found is None or float(found[1]) <= 0:
        raise ValueError(f"{text!r} is not a duration: write 30d, 12h, 15m or 90s")
    return float(found[1]) * UNITS[found[2]]


# ---- where keys are


class FileStore:
    """The database itself."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> FileStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def create(self, fields: dict[str, Any]) -> dict[str, Any]:
        """See `KeyRequest`; the answer has `key`."""
        now_s = wall_time_s()
        if (expires_in_s := fields.pop("expires_in_s", None)) is not None:
            fields["expires_at"] = now_s + expires_in_s
        made = make_key(KeyTerms(**fields), now_s)
        self._database.put_key(made.record)
        return {"key": made.secret} | _view(made.record)

    def all(self) -> list[dict[str, Any]]:
        """Every key."""
        return [_view(record) for record in self._database.all_keys()]

    def show(self, key_id: str) -> dict[str, Any]:
        """One key, and what it has used."""
        record = self._database.key(key_id)
        if record is None:
            raise KeyNotFound(f"there is no key {key_id!r}", "key_id")
        cost, tokens = self._database.spent_since(key_id, 0.0)
        return _view(record) | {"used": {"cost": cost / 1e9, "tokens": tokens}}

    def rotate(self, key_id: str, grace_s: float) -> dict[str, Any]:
        """The answer has `key`."""
        secret, now_s = make_secret(key_id), wall_time_s()
        record = self._database.change_key(key_id, lambda one: rotated(one, secret, now_s, grace_s))
        return {"key": secret} | _view(record)

    def revoke(self, key_id: str) -> dict[str, Any]:
        """It opens nothing any more."""
        now_s = wall_time_s()
        return _view(self._database.change_key(key_id, lambda one: revoked(one, now_s)))


class ServerStore:
    """A server's `/keys`."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def __enter__(self) -> ServerStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def create(self, fields: dict[str, Any]) -> dict[str, Any]:
        """See `FileStore`."""
        return self._ask("POST", "/keys", fields)

    def all(self) -> list[dict[str, Any]]:
        """See `FileStore`."""
        found: list[dict[str, Any]] = self._ask("GET", "/keys")["data"]
        return found

    def show(self, key_id: str) -> dict[str, Any]:
        """See `FileStore`."""
        return self._ask("GET", f"/keys/{quote(key_id, safe='')}")

    def rotate(self, key_id: str, grace_s: float) -> dict[str, Any]:
        """See `FileStore`."""
        return self._ask("POST", f"/keys/{quote(key_id, safe='')}/rotate", {"grace_s": grace_s})

    def revoke(self, key_id: str) -> dict[str, Any]:
        """See `FileStore`."""
        return self._ask("DELETE", f"/keys/{quote(key_id, safe='')}")

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return told_by(self._client, method, path, body)


Store = FileStore | ServerStore


def open_store(namespace: argparse.Namespace) -> Store:
    """The file, which `create` alone makes, unless a server was named; without either, the server on this host."""
    variables = environment()
    path = namespace.keys_db or (None if namespace.url else variables.get("BATON_KEYS_DB"))
    if path is not None:
        file = path_at(path, "--keys-db")
        if namespace.act is not run_create and not file.exists():
            raise ConfigError(f"--keys-db: there is no {file}; baton keys create makes it")
        is_reading = namespace.act in (run_list, run_show)
        return FileStore(open_to_read(file) if is_reading else open_database(file))
    key = namespace.admin_api_key or variables.get("BATON_ADMIN_API_KEY")
    key = key or variables.get("BATON_API_KEY")
    return ServerStore(status_client(namespace.url or DEFAULT_URL, key))


def _view(record: KeyRecord) -> dict[str, Any]:
    from coordinator.edge.operations.routes_keys import key_view

    return key_view(record, wall_time_s())


# ---- verbs


def run_create(store: Store, namespace: argparse.Namespace) -> None:
    """Print the new secret."""
    given = {name: value for name, value in vars(namespace).items() if value is not None}
    names = {*KeyTerms.__struct_fields__, "expires_in_s"}
    _tell_secret(store.create({name: given[name] for name in names & given.keys()}), namespace)


def run_list(store: Store, namespace: argparse.Namespace) -> None:
    """Print a table, or JSON."""
    keys = store.all()
    if namespace.json:
        print(json.dumps(keys, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("id", "tenant", "name", "state", "scopes", "requests/min", "tokens/min"):
        table.add_column(heading)
    for key in keys:
        limits = [key["requests_per_minute"], key["tokens_per_minute"]]
        words = [key["id"], key["tenant"], key["name"], key["state"], ",".join(key["scopes"])]
        table.add_row(*words, *("-" if limit is None else str(limit) for limit in limits))
    plain_console().print(table)


def run_show(store: Store, namespace: argparse.Namespace) -> None:
    """Print all that may be shown of a key."""
    print(json.dumps(store.show(namespace.key_id), indent=2))


def run_rotate(store: Store, namespace: argparse.Namespace) -> None:
    """Print the other secret."""
    _tell_secret(store.rotate(namespace.key_id, namespace.grace or 0.0), namespace)


def run_revoke(store: Store, namespace: argparse.Namespace) -> None:
    """Say so."""
    print(f"{store.revoke(namespace.key_id)['id']} is revoked")


def _tell_secret(made: dict[str, Any], namespace: argparse.Namespace) -> None:
    if namespace.json:
        print(json.dumps(made, indent=2))
        return
    print(made["key"])
    print(f"{made['id']}: keep the key above; it is not shown again", file=sys.stderr)


# ---- the command line


def make_parser() -> Parser:
    """Of every verb."""
    parser = Parser(
        prog="baton keys",
        description="Keys with which clients ask: create, list, show, rotate and revoke them, in their file or on a running server.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(metavar="WHAT", parser_class=Parser)
    _add_create(_add(verbs, "create", "make a key, and print it", run_create))
    shown = _add(verbs, "list", "all keys, without secrets", run_list)
    shown.add_argument("--json", action="store_true", help="all of each")
    _add_id(_add(verbs, "show", "one key, and what it used", run_show))
    rotate = _add(verbs, "rotate", "give a key another secret, and print it", run_rotate)
    _add_id(rotate)
    help_text = "how long the former secret is good, as 24h (default: not at all)"
    rotate.add_argument("--grace", type=typed(duration), metavar="DURATION", help=help_text)
    rotate.add_argument("--json", action="store_true", help="all that is known of it, too")
    _add_id(_add(verbs, "revoke", "let a key open nothing any more", run_revoke))
    return parser


def _add(verbs: Any, name: str, help_text: str, act: Any) -> Parser:
    parser: Parser = verbs.add_parser(
        name, help=help_text, description=help_text, allow_abbrev=False
    )
    parser.set_defaults(act=act)
    parser.add_argument("--keys-db", metavar="FILE", help="default: BATON_KEYS_DB")
    parser.add_argument("--url", type=typed(url), help=f"a server instead (default: {DEFAULT_URL})")
    parser.add_argument("--admin-api-key", type=typed(header_key), metavar="KEY")
    return parser


def _add_id(parser: Parser) -> None:
    parser.add_argument("key_id", metavar="ID", help="as `baton keys list` shows it")


def _add_create(parser: Parser) -> None:
    add, count = parser.add_argument, typed(whole(1))
    add("--tenant", metavar="NAME", help="whose it is (default: its own, named by its id)")
    add("--name", metavar="TEXT", help="what it is for")
    add("--scopes", nargs="+", choices=SCOPES, help="what it opens (default: inference)")
    add("--models", nargs="+", metavar="MODEL", help="all that it may use (default: every one)")
    add("--expires-in", dest="expires_in_s", type=typed(duration), metavar="DURATION")
    add("--requests-per-minute", type=count, metavar="N")
    add("--tokens-per-minute", type=count, metavar="N")
    add("--parallel-requests", type=count, metavar="N")
    add("--budget", type=typed(positive), metavar="AMOUNT", help="in the prices' currency")
    add("--budget-tokens", type=count, metavar="N")
    period = "when a budget begins anew, as 30d (default: never)"
    add(
        "--budget-period",
        dest="budget_period_s",
        type=typed(duration),
        metavar="DURATION",
        help=period,
    )
    add("--tags", nargs="+", metavar="TAG")
    add("--weight", type=typed(positive), metavar="N", help="its share beside others (default: 1)")
    add("--priority", type=int, metavar="N")
    shared = "let keys with the same NAME find each other's prefixes"
    add("--shared-cache", metavar="NAME", help=shared)
    add("--json", action="store_true", help="all that is known of it, too")

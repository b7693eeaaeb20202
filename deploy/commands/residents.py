"""`baton load`, `baton unload` and `baton ps`: models in memory. Owns the asking and the table; the facts are `GET /models`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from deploy.commands.asking import object_in, reply_of
from deploy.commands.chat import ServerError, explain
from deploy.commands.scale import ask
from deploy.commands.status import plain_console, status_client
from deploy.config.parser import Parser
from deploy.config.server_access import add_admin_url, admin_key
from deploy.config.values import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import httpx

PURPOSES = {
    "load": "bring a model into memory, and wait for it",
    "unload": "take a model out of memory as soon as nobody uses it",
    "ps": "show which models are in memory, and when they go",
}


def main(argv: Sequence[str]) -> int:
    """Exit status; the first word says which of the three."""
    verb, *rest = argv
    parser = Parser(prog=f"baton {verb}", description=PURPOSES[verb], allow_abbrev=False)
    if verb != "ps":
        parser.add_argument("model", metavar="MODEL")
    if verb == "load":
        told = "how long it stays without use: 5m, seconds, 0, or -1 for ever"
        parser.add_argument("--keep-alive", metavar="TIME", help=told)
    add_admin_url(parser)
    given = parser.parse_args(rest)
    with status_client(given.url, admin_key(given)) as client:
        if verb == "load":
            return load(client, given.model, given.keep_alive)
        return unload(client, given.model) if verb == "unload" else ps(client)


def load(client: httpx.Client, model: str, keep_alive: str | None) -> int:
    """Bring it into memory, and wait for that."""
    body = {"model": model} | ({} if keep_alive is None else {"keep_alive": keep_alive})
    client.timeout = None
    ask(client, "/models/load", body)
    print(f"{model} is loaded")
    return 0


def unload(client: httpx.Client, model: str) -> int:
    """Take it out as soon as nobody uses it."""
    card = ask(client, "/models/unload", {"model": model})
    users = card.get("users", 0)
    if card["status"]["value"] in ("unloaded", "failed"):
        print(f"{model} is not in memory: there is nothing to do")
        return 0
    print(f"{model} goes" + (f" when the {users} requests that use it have ended" if users else ""))
    return 0


def ps(client: httpx.Client) -> int:
    """One row a model."""
    response = reply_of(client, "GET", "/models")
    if response.status_code == 404:
        raise ServerError("all models of this server stay: baton status shows them")
    if response.status_code != 200:
        raise ServerError(explain(response))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("model", "state", "size", "used by", "waited for by", "goes in"):
        table.add_column(heading)
    for card in object_in(response)["data"]:
        table.add_row(*_row(card))
    plain_console().print(table)
    return 0


def _row(card: dict[str, Any]) -> tuple[str, ...]:
    state, in_s = card["status"]["value"], card["expires_in_s"]
    goes = (
        "" if state not in ("loaded", "sleeping") else "never" if in_s is None else f"{in_s:.0f} s"
    )
    failure = f" ({card['failure']})" if card["failure"] else ""
    counts = (str(card["users"]), str(card["waiting"]))
    return (card["id"], state + failure, format_bytes(card["needed_bytes"]), *counts, goes)

"""`baton rollout`: a new revision of a model beside the one that serves, and its way to all of the traffic, or out again. Owns the asking
and the table; what happens is decided by the server.

    start chat v2 ./new --weight 10 ─► weights chat v1=50 v2=50 ─► promote chat │ rollback chat
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from deploy.commands.asking import told_by
from deploy.commands.chat import ServerError
from deploy.commands.scale import ask
from deploy.commands.status import plain_console, status_client
from deploy.config.parser import Parser, typed
from deploy.config.server_access import add_admin_url, admin_key
from deploy.config.topology import path_at
from deploy.config.values import number
from protocol.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    import httpx

VERBS = {
    "start": "load a revision beside those that serve, and give it a part of the traffic",
    "weights": "change which part of new conversations each revision has",
    "promote": "give a revision everything; the others go when nobody uses them",
    "rollback": "give everything back to the revision that had it before",
    "status": "show revisions, weights and what is under way",
}


def main(argv: Sequence[str]) -> int:
    """Exit status."""
    given = make_parser().parse_args(argv)
    with status_client(given.url, admin_key(given)) as client:
        return int(given.run(client, given))


def make_parser() -> Parser:
    """Of `baton rollout`."""
    parser = Parser(
        prog="baton rollout",
        description="roll out a new revision of a model while it serves",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    start = _add(verbs, "start", start_one)
    start.add_argument("revision", metavar="REVISION")
    told = (
        "a directory, a .gguf file or a hub id; not for a revision that the server was started with"
    )
    start.add_argument("source", metavar="MODEL", nargs="?", help=told)
    part = typed(number(0, 100))
    start.add_argument(
        "--weight",
        type=part,
        default=0.0,
        metavar="PERCENT",
        help="of new conversations once it is there (default: 0)",
    )
    weights = _add(verbs, "weights", weigh)
    weights.add_argument("weights", nargs="+", metavar="REVISION=WEIGHT")
    for verb, run, told in (
        ("promote", promote, "default: the one that serves beside the stable one"),
        ("rollback", rollback, ""),
        ("status", status, ""),
    ):
        sub = _add(verbs, verb, run)
        if verb == "promote":
            sub.add_argument("revision", metavar="REVISION", nargs="?", help=told)
    return parser


def _add(verbs: Any, verb: str, run: Any) -> Parser:
    parser: Parser = verbs.add_parser(
        verb, help=VERBS[verb], description=VERBS[verb], allow_abbrev=False
    )
    is_status = verb == "status"
    parser.add_argument("model", metavar="NAME", nargs="?" if is_status else None, help="the model")
    add_admin_url(parser)
    parser.set_defaults(run=run)
    return parser


def start_one(client: httpx.Client, given: argparse.Namespace) -> int:
    """Load it, and wait for that."""
    body: dict[str, Any] = {"model": given.model, "revision": given.revision}
    body["weight"] = given.weight
    if given.source is not None:
        path = path_at(given.source, "MODEL")
        body["source"] = str(path.absolute()) if path.exists() else given.source
    client.timeout = None
    told = ask(client, "/rollouts/start", body)
    _tell(told)
    return 0


def weigh(client: httpx.Client, given: argparse.Namespace) -> int:
    """Other weights, at once."""
    weights = parse_weights(given.weights)
    _tell(ask(client, "/rollouts/weights", {"model": given.model, "weights": weights}))
    return 0


def parse_weights(words: Sequence[str]) -> dict[str, float]:
    """`v1=90 v2=10`; ConfigError says what to write."""
    found: dict[str, float] = {}
    for word in words:
        revision, equals, weight = word.rpartition("=")
        try:
            found[revision] = number(0, 1e6)(weight)
        except ValueError:
            equals = ""
        if not (equals and revision):
            raise ConfigError(f"rollout weights: {word!r} is not understood: write v1=90 v2=10")
    return found


def promote(client: httpx.Client, given: argparse.Namespace) -> int:
    """Everything to it."""
    named = {} if given.revision is None else {"revision": given.revision}
    _tell(ask(client, "/rollouts/promote", {"model": given.model, **named}))
    return 0


def rollback(client: httpx.Client, given: argparse.Namespace) -> int:
    """Everything back."""
    _tell(ask(client, "/rollouts/rollback", {"model": given.model}))
    return 0


def status(client: httpx.Client, given: argparse.Namespace) -> int:
    """One row a revision."""
    shown = [one for one in _asked(client) if given.model in (None, *one["names"])]
    if given.model is not None and not shown:
        raise ServerError(f"{given.model} has no revisions")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("model", "revision", "state", "weight", "share", "requests", "live"):
        table.add_column(heading)
    for one in shown:
        for each in one["revisions"]:
            table.add_row(one["model"], *_row(one, each))
    plain_console().print(table)
    return 0


def _asked(client: httpx.Client) -> list[dict[str, Any]]:
    """`GET /rollouts`; ServerError when there is no server or no answer."""
    found: list[dict[str, Any]] = told_by(client, "GET", "/rollouts")["data"]
    return found


def _row(one: dict[str, Any], each: dict[str, Any]) -> tuple[str, ...]:
    failure = f" ({each['failure']})" if each["failure"] else ""
    is_stable = " (stable)" if each["revision"] == one["stable"] else ""
    counts = (str(each["requests"]), str(each["live"]))
    weight = f"{each['weight']:g}"
    state = each["state"] + failure
    return (each["revision"] + is_stable, state, weight, f"{each['share']:.1%}", *counts)


def _tell(told: dict[str, Any]) -> None:
    """`chat: v1 90 %, v2 10 %`."""
    shares = [f"{e['revision']} {e['share']:.0%}" for e in told["revisions"] if e["share"]]
    print(f"{told['model']}: {', '.join(shares)}")

"""`baton apply -f FILE`: makes a running server what its file says. Owns the comparison; applied again it changes nothing.

The file is that of `baton serve --config`. While a server runs, its pools (`pd`, `prefill-replicas`, `decode-replicas`) or what
sizes them (`autoscale`, `autoscale-dry-run`, `slo`) can change; every other option holds from the start on, and is named where the file has it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.commands.scale import ask, is_reached, wait_for
from deploy.commands.status import read_cluster, status_client
from deploy.config.autoscale import limits_of, targets_of
from deploy.config.models import KEY
from deploy.config.parser import Parser, typed
from deploy.config.serve_config import ServeConfig, read_file, resolve
from deploy.config.server_access import add_admin_url, admin_key
from deploy.config.values import seconds
from protocol.errors import ConfigError
from protocol.roles import Role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

POOLS = ("pd", "prefill-replicas", "decode-replicas")
LIVE = (*POOLS, "autoscale", "autoscale-dry-run", "slo")


def main(argv: Sequence[str]) -> int:
    """Exit status; each change goes to stdout."""
    given = make_parser().parse_args(list(argv))
    named, config = read_file(given.file), resolve({}, {}, given.file).config
    with status_client(given.url, admin_key(given)) as client:
        view = read_cluster(client)
        check_models(given.file, named, view)
        settings = view.get("autoscaler", {}).get("settings", {})
        wish = autoscale_wish(config, settings)
        wanted = {} if config.autoscale else pool_wish(config, named, view["target"])
        if rest := [name for name in named if name not in LIVE]:
            print(f"from the start on only: {', '.join(rest)}", file=sys.stderr)
        if not wish and not wanted:
            print("nothing to change")
        changes = told(wish, settings) + told(wanted, view["target"])
        if given.dry_run:
            print("".join(f"would change {change}\n" for change in changes), end="")
            return 0
        if wish:
            ask(client, "/cluster/autoscale", wish)
        if wanted:
            ask(client, "/cluster/scale", wanted)
        print("".join(f"changed {change}\n" for change in changes), end="", flush=True)
        if wanted and given.wait:
            wait_for(client, is_reached, given.timeout)
    return 0


def make_parser() -> Parser:
    """Of this verb."""
    parser = Parser(
        prog="baton apply",
        description="make a running server what its configuration file says",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-f", "--file", type=Path, required=True, metavar="FILE", help="as of baton serve --config")
    add("--dry-run", action="store_true", help="say what would change, and change nothing")
    add("--no-wait", dest="wait", action="store_false", help="return before the pools are there")
    add("--timeout", type=typed(seconds), default=180.0, metavar="SECONDS", help="default: 180")
    add_admin_url(parser)
    return parser


def check_models(file: Path, named: Mapping[str, Any], view: Mapping[str, Any]) -> None:
    """ConfigError where the file or the server has several models, which hold from the start on, and pools of their own."""
    here = list(view.get("models", {}))
    if KEY in named or here:
        served = f"; served: {', '.join(here)}" if here else ""
        raise ConfigError(
            f"{file}: {KEY}: a running server keeps the models that it was started with{served}. Restart it with this file to add "
            "or remove one, and size a model's pools with baton scale --model NAME"
        )


def autoscale_wish(config: ServeConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of the autoscaler is to be different, as `/cluster/autoscale` takes it."""
    if not config.autoscale:
        return {} if settings.get("mode", "off") == "off" else {"mode": "off"}
    targets, limits = targets_of(config.slo), limits_of(config.autoscale)
    wanted: dict[str, Any] = {
        "ttft_ms": round(targets.ttft_s * 1e3, 3),
        "tpot_ms": round(targets.tpot_s * 1e3, 3),
        "goal": targets.goal,
        "prefill": [limits.prefill.least, limits.prefill.most],
        "decode": [limits.decode.least, limits.decode.most],
        "total": limits.budget,
        "idle_s": limits.idle_s,
        "mode": "dry-run" if config.autoscale_dry_run else "on",
    }
    return {name: value for name, value in wanted.items() if settings.get(name) != value}


def pool_wish(
    config: ServeConfig, named: Mapping[str, Any], target: Mapping[str, int]
) -> dict[str, int]:
    """The pools that are to have another size; none when the file says nothing of them."""
    if not any(name in named for name in POOLS):
        return {}
    wanted = {Role.PREFILL.value: config.pools.prefill, Role.DECODE.value: config.pools.decode}
    wanted[Role.STORE.value] = config.pools.store
    return {role: count for role, count in wanted.items() if target.get(role, 0) != count}


def told(wish: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """`decode: 1 → 2`."""
    return [f"{name}: {before.get(name)} → {value}" for name, value in wish.items()]

"""`baton autoscale`: what sizes the pools of a running server, shown or changed. Owns its own command line.

    baton autoscale                                      what is in force, and what it would do now
    baton autoscale ttft:1000 goal:0.95 decode=2..8      what is not named stays
    baton autoscale --off | --on | --dry-run

The server forgets changes when it is started again: then its own options hold.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from deploy.commands.scale import ask
from deploy.commands.status import read_cluster, status_client
from deploy.config.parser import Parser
from deploy.config.server_access import add_admin_url, admin_key
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

_RANGE = re.compile(r"(prefill|decode)=(\d{1,4})\.\.(\d{1,4})")
_TOTAL = re.compile(r"total=(\d{1,4})")
_IDLE = re.compile(r"idle=([1-9]\d{0,4})s?")
_TARGET = re.compile(r"(ttft|tpot):(\d+(?:\.\d+)?)(?:ms)?")
_GOAL = re.compile(r"goal:(0?\.\d+)")
MODES = ("on", "off", "dry-run")


def main(argv: Sequence[str]) -> int:
    """Exit status; what is in force goes to stdout."""
    namespace = make_parser().parse_args(list(argv))
    wish = parse_wish(namespace.wanted)
    if namespace.mode is not None:
        wish["mode"] = namespace.mode
    with status_client(namespace.url, admin_key(namespace)) as client:
        if wish:
            ask(client, "/cluster/autoscale", wish)
        shown = read_cluster(client).get("autoscaler", {})
    print(json.dumps(shown, indent=2) if namespace.json else describe(shown))
    return 0


def make_parser() -> Parser:
    """Of this verb."""
    parser = Parser(
        prog="baton autoscale",
        description="show or change what sizes the pools of a running server",
        allow_abbrev=False,
    )
    parser.add_argument(
        "wanted",
        nargs="*",
        metavar="prefill=1..4|decode=1..8|total=N|idle=S|ttft:MS|tpot:MS|goal:SHARE",
        help="what is to be different; the rest stays",
    )
    modes = parser.add_mutually_exclusive_group()
    for mode in MODES:
        modes.add_argument(
            f"--{mode}", dest="mode", action="store_const", const=mode, help=f"the mode is {mode}"
        )
    parser.add_argument("--json", action="store_true", help="print the server's answer as it is")
    add_admin_url(parser)
    return parser


def parse_wish(words: Sequence[str]) -> dict[str, Any]:
    """The body of `/cluster/autoscale`; ConfigError says what to write."""
    wish: dict[str, Any] = {}
    for word in (part for text in words for part in text.split(",") if part):
        name, value = _parse(word)
        if name in wish:
            raise ConfigError(f"autoscale: {name} is given twice")
        wish[name] = value
    return wish


def _parse(word: str) -> tuple[str, Any]:
    if match := _RANGE.fullmatch(word):
        return match[1], [int(match[2]), int(match[3])]
    if match := _TOTAL.fullmatch(word):
        return "total", int(match[1])
    if match := _IDLE.fullmatch(word):
        return "idle_s", float(match[1])
    if match := _TARGET.fullmatch(word):
        return f"{match[1]}_ms", float(match[2])
    if match := _GOAL.fullmatch(word):
        return "goal", float(match[1])
    raise ConfigError(
        f"autoscale: {word!r} is not understood: write prefill=1..4 decode=1..8 total=10 idle=300, ttft:2000 tpot:100 goal:0.95"
    )


def describe(shown: dict[str, Any]) -> str:
    """For people: settings, and what the planner thinks of them."""
    settings = shown["settings"]
    lines = [f"mode      {settings['mode']}"]
    if settings["ttft_ms"] is not None:
        lines.append(
            f"slo       ttft:{settings['ttft_ms']:g} tpot:{settings['tpot_ms']:g} goal:{settings['goal']:g}"
        )
    if settings["prefill"] is not None:
        ranges = (
            f"{role}={settings[role][0]}..{settings[role][1]}" for role in ("prefill", "decode")
        )
        lines.append(f"ranges    {','.join(ranges)},total={settings['total']}")
        if settings["decode"][0] == 0:
            lines.append(f"idle      no worker after {settings['idle_s']:g} s without a request")
    if shown["enabled"]:
        verb = "would" if shown["dry_run"] else "does"
        lines.append(f"{verb:<10}{spell(shown['wants'])}: {shown['reason']}")
        lines += [shown[key] for key in ("trouble", "beyond_reach") if shown[key]]
    return "\n".join(lines)


def spell(decision: dict[str, Any]) -> str:
    """A decision in few words."""
    match decision["decision"]:
        case "flip":
            return f"flip {decision['worker']} to {decision['role']}"
        case "scale":
            return f"have prefill={decision['prefill']} decode={decision['decode']}"
        case _:
            return "hold"

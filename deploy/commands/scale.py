"""`baton scale`, `baton drain`, `baton role`: what an operator asks of the pools. Owns the asking and the waiting.

They talk to the server alone, so that they are the same whichever launcher runs the workers.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from deploy.commands.asking import told_by
from deploy.commands.chat import ServerError
from deploy.commands.status import read_cluster, refusals
from protocol.clock import SystemClock
from protocol.errors import ConfigError
from protocol.roles import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import httpx

POLL_S = 0.2
MAX_LISTED = 8
ROLES = tuple(role.value for role in Role)


def parse_wanted(words: Sequence[str]) -> dict[str, int]:
    """`prefill=3 decode=1` → numbers by role; ConfigError says what to write."""
    wanted: dict[str, int] = {}
    for word in words:
        role, equals, count = word.partition("=")
        if not equals or role not in ROLES or not count.isdecimal():
            raise ConfigError(
                f"scale: {word!r} is not understood: write prefill=3 decode=1, or store=1"
            )
        if role in wanted:
            raise ConfigError(f"scale: {role} is given twice")
        wanted[role] = int(count)
    return wanted


def scale(
    client: httpx.Client,
    wanted: dict[str, int],
    patience_s: float | None,
    model: str | None = None,
) -> int:
    """Ask, and wait until the pools are as wanted. Exit status 0 when they are, or nobody waits. Of several models one
    must be named."""
    whose = {} if model is None else {"model": model}
    answer = ask(client, "/cluster/scale", wanted | whose)
    _tell(_shape(answer["target"]), "starting", answer["started"], "draining", answer["drained"])
    if patience_s is None:
        return 0
    wait_for(client, is_reached, patience_s)
    print(f"done: {_shape(read_cluster(client)['target'])}")
    return 0


def drain_all(client: httpx.Client, patience_s: float | None) -> int:
    """Let the whole server take nothing new, and wait until all that it has is answered."""
    print(f"draining: {ask(client, '/cluster/drain')['live']} requests live")
    if patience_s is None:
        return 0
    wait_for(client, lambda view: view["requests"]["live"] == 0, patience_s)
    print("done: nothing is left")
    return 0


def drain(
    client: httpx.Client, worker: str, patience_s: float | None, within_s: float | None = None
) -> int:
    """Ask, and wait until the worker is gone; with `within_s` it has no longer than that."""
    limit = None if within_s is None else {"within_s": within_s}
    answer = ask(client, _path(worker, "drain"), limit)
    _tell(_shape(answer["target"]), "draining", [worker])
    if patience_s is None:
        return 0

    def is_gone(view: dict[str, Any]) -> bool:
        here = [entry["id"] for entry in view["workers"]] + view["scaling"]["leaving"]
        return worker not in here

    wait_for(client, is_gone, patience_s)
    print(f"done: {worker} left")
    return 0


def set_role(client: httpx.Client, worker: str, role: str) -> int:
    """Ask; it is done when the answer comes."""
    answer = ask(client, _path(worker, "role"), {"role": role})
    print(f"done: {worker} is {role} now, {_shape(answer['target'])}")
    return 0


def _path(worker: str, what: str) -> str:
    return f"/cluster/workers/{quote(worker, safe='')}/{what}"


def ask(client: httpx.Client, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """POST; ServerError with the server's own words when it refuses."""
    return told_by(client, "POST", path, body)


def is_reached(view: dict[str, Any]) -> bool:
    """Whether exactly the wanted workers are there and ready. ServerError when some cannot be had."""
    if told := refusals(view["scaling"]["refused"]):
        raise ServerError("; ".join(told))
    ready = [worker["role"] for worker in view["workers"] if worker["state"] == "ready"]
    is_full = all(ready.count(role) == count for role, count in view["target"].items())
    return is_full and not view["scaling"]["leaving"] and len(ready) == len(view["workers"])


def wait_for(
    client: httpx.Client, condition: Callable[[dict[str, Any]], bool], patience_s: float
) -> None:
    """Look until the condition holds, and show what changes; ServerError when that takes too long."""
    clock, pause, shown = SystemClock(), threading.Event(), ""
    until_s = clock.now_s() + patience_s
    while True:
        view = read_cluster(client)
        if condition(view):
            return
        if (now := _progress(view)) != shown:
            shown = now
            print(now, file=sys.stderr)
        if clock.now_s() > until_s:
            raise ServerError(
                f"not done after {patience_s:g} s: {now}; it goes on: look with baton status"
            )
        pause.wait(POLL_S)


def _progress(view: dict[str, Any]) -> str:
    """The workers that are not ready, and what they are instead."""
    entries = [*view["workers"], *view.get("lost", ())]
    here = {entry["id"]: entry["state"] for entry in entries}
    waiting = [f"{name} {state}" for name, state in here.items() if state != "ready"]
    scaling = view["scaling"]
    stuck = [entry for entry in scaling.get("waiting", ()) if entry["id"] not in here]
    waiting += [f"{entry['id']} waits for {entry['waits_for']}" for entry in stuck]
    if scaling.get("away"):
        waiting.append(scaling["away"])
    waiting += [f"{name} leaving" for name in view["scaling"]["leaving"] if name not in here]
    missing = sum(view["target"].values()) - len(stuck)
    missing -= sum(1 for name in here if name not in view["scaling"]["leaving"])
    if missing > 0:
        waiting.append(f"{missing} starting up")
    return ", ".join(waiting) or "finishing"


def _shape(target: dict[str, int]) -> str:
    return ", ".join(f"{count} {role}" for role, count in target.items())


def _listed(names: Sequence[str]) -> str:
    """All of a few, else the first and last of them."""
    if len(names) <= MAX_LISTED:
        return ", ".join(names)
    return f"{names[0]} … {names[-1]} ({len(names)})"


def _tell(shape: str, *parts: Any) -> None:
    """`wanted: 3 prefill, 1 decode; starting prefill-1, prefill-2`."""
    said = [
        f"; {word} {_listed(names)}"
        for word, names in zip(parts[::2], parts[1::2], strict=True)
        if names
    ]
    print(f"wanted: {shape}{''.join(said)}")

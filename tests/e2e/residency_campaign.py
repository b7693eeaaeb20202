"""Three models with memory for two, under requests at random, step by step beside the scheduler that is written from the rules alone.

usage: python -m tests.e2e.residency_campaign [--seconds N] [--seed S] [--room models|bytes] [--out FILE]

One thing happens at a time: a request comes, one leaves while it waits or while it is answered, a model is ordered in or sent away, time
passes. What the server's processes do by themselves (workers that have come, or have left) is seen and told to the rules; all that is
decided they say alone. After each step the server must tell what they say: each model's state, users, who waits and how long it
stays, and the very requests that are answered. Moments at which the clock decides are not asked at, but waited out.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coordinator.cluster.residency import PATIENCE_S as SHUT_AFTER_S
from tests.e2e.fleet_campaign import write_models
from tests.e2e.held_requests import HeldRequests
from tests.e2e.server import Server
from tests.patience import PATIENCE_S
from tests.residency_rules import NO_WORD, Rules, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.held_requests import Held

NAMES = ("red", "blue", "green")
USUAL: dict[str, float | None] = {"red": 5.0, "blue": None, "green": 0.0}
WORDS: tuple[float | None, ...] = (NO_WORD, NO_WORD, NO_WORD, None, 0.0, 7.0)
TOLD = {"unloaded": "out", "loading": "loading", "loaded": "in", "unloading": "leaving"}
NUM_TOKENS, POSITIONS = 12_000, 32_768
MAX_HELD, MAX_OPEN = 4, 9
REFUSED = 429
MARGIN_S = 1.0
"""So near to a moment at which the clock decides nothing is asked."""
POLL_S = 0.02
PROMPT = "Once upon a time there was"
CONFIG = """
dtype: float32
cpu-affinity: none
kv-cache-memory: 48MiB
max-num-batched-tokens: 64
max-num-seqs: 8
max-queued-requests: {held}
{room}
models:
  - {{model: {base}/red, pd: {shape}, keep-alive: 5}}
  - {{model: {base}/blue, pd: 0p1d, keep-alive: -1}}
  - {{model: {base}/green, pd: 0p1d, keep-alive: 0}}
"""
ROOMS = {
    "models": ("0p1d", "memory-budget: 4GiB\nmax-loaded-models: 2", 4 << 30, 2),
    "bytes": ("1p2d", "memory-budget: 1500MiB", 1500 << 20, 3),
}
"""Red's pools, what the file says of memory, and the same for the rules. In `bytes` red and another fit only when red has shrunk."""
Kind = tuple[str, int]
KINDS: tuple[Kind, ...] = (
    ("ask", 8),
    ("leave", 6),
    ("drop", 1),
    ("order", 2),
    ("send_away", 2),
    ("wait", 3),
    ("wait_long", 1),
)


def write_longer_models(base: Path) -> None:
    """Whose answers last until somebody leaves."""
    for directory in write_models(base, NAMES).values():
        file = directory / "config.json"
        config = json.loads(file.read_text())
        file.write_text(json.dumps(config | {"max_position_embeddings": POSITIONS}))


class Parted(AssertionError):
    """The server and the rules say different things."""


class Campaign:
    """Both of them, told the same. `counts` is what happened."""

    def __init__(self, server: Server, requests: HeldRequests, room: str, seed: int) -> None:
        self._server, self._requests = server, requests
        self._chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        cards = self._cards()
        sizes = {name: cards[name]["needed_bytes"] for name in NAMES}
        _, _, budget, most = ROOMS[room]
        least = dict(sizes)
        self._least_workers = dict.fromkeys(NAMES, 1)
        if room == "bytes":
            least["red"] -= (sizes["red"] - sizes["blue"]) // 2
            self._least_workers["red"] = 2
        self.rules = Rules(sizes, budget, most, dict(USUAL), MAX_HELD, least)
        self._open: dict[int, Held] = {}
        self._orders: set[int] = set()
        self._admitted: set[int] = set()
        self._refused: set[int] = set()
        self._number = 0
        self._loads: Counter[str] = Counter()
        self.trail: list[str] = []

    # ---- one step

    def run(self, seconds: float) -> None:
        """Raises Parted, with the last things that happened."""
        until_s = time.monotonic() + seconds
        kinds, weights = zip(*KINDS, strict=True)
        while time.monotonic() < until_s:
            kind = self._chance.choices(kinds, weights)[0]
            if self._happens(kind):
                self.counts[kind] += 1
                self._agree()
        while self._open:
            self._leave(next(iter(self._open)))
            self._agree()

    def _happens(self, kind: str) -> bool:
        """False where it cannot."""
        name = self._chance.choice(NAMES)
        users = sorted(self._admitted & set(self._open))
        waiting = [entry.number for entry in self.rules.line]
        if kind in ("ask", "order") and len(self._open) < MAX_OPEN:
            self._ask(name, is_order=kind == "order")
        elif kind == "leave" and users:
            self._leave(self._chance.choice(users))
        elif kind == "drop" and waiting:
            self._leave(self._chance.choice(waiting))
        elif kind == "send_away":
            self._note(f"{name} is sent away")
            self._server.client.post("/models/unload", json={"model": name}).raise_for_status()
            self._follow(self.rules.send_away(name, self._now()))
        elif kind in ("wait", "wait_long"):
            self._pass(self._chance.uniform(0.1, 1.5) if kind == "wait" else SHUT_AFTER_S)
        else:
            return False
        return True

    def _ask(self, name: str, *, is_order: bool) -> None:
        self._number += 1
        number, word = self._number, self._chance.choice(WORDS)
        said = {} if word == NO_WORD else {"keep_alive": -1 if word is None else word}
        body: dict[str, Any] = {"model": name} | said
        if not is_order:
            options = {"num_predict": NUM_TOKENS, "temperature": 0}
            body |= {"prompt": PROMPT, "raw": True, "options": options}
        self._note(f"{number}: {'order' if is_order else 'ask'} {name}, {said}")
        path = "/models/load" if is_order else "/api/generate"
        held = self._open[number] = self._requests.ask(number, path, body)
        if is_order:
            self._orders.add(number)
        self._until(lambda: self._is_seen(held), "the request has come")
        if (
            held.status != REFUSED
        ):  # a model that came in the same moment may have made the room for it
            self._look()
        entry = Waiting(number, name, self._now(), word)
        self._follow(self.rules.ask(entry, self._now()))

    def _is_seen(self, held: Held) -> bool:
        """It stands in the line, or is answered. What comes or goes before it is told to the rules before it."""
        is_answered = held.is_answered
        _, users, waiting, _ = self._told()[held.model]
        _, told_users, told_waiting, _ = self._expected()[held.model]
        if is_answered or users + waiting > told_users + told_waiting:
            return True
        self._look()
        return False

    def _leave(self, number: int) -> None:
        held = self._open.pop(number)
        self._note(f"{number}: leaves {held.model}")
        self._requests.leave(held)
        if number in self._admitted:
            self._admitted.discard(number)
            self._follow(self.rules.left(held.model, self._now()))
        else:
            self._follow(self.rules.dropped(number, self._now()))

    def _pass(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            self._look()
            time.sleep(POLL_S)

    # ---- what the rules say

    def _follow(self, done: set[tuple[str, object]]) -> None:
        """Orders are over as soon as they are admitted."""
        for what, which in sorted(done, key=str):
            self._note(f"    {what} {which}")
            self.counts[f"decided: {what}"] += 1
            if what in ("fail", "refused"):
                self._refused.add(int(str(which)))
            elif what == "admit":
                self._admitted.add(int(str(which)))
        for number in sorted(self._admitted & self._orders):
            if number not in self._admitted:
                continue
            self._admitted.discard(number)
            self._orders.discard(number)
            held = self._open.pop(number)
            self._await_answer(held, f"order {number} is answered")
            self._is_status(held, 200)
            self._requests.leave(held)
            self._follow(self.rules.left(held.model, self._now()))
        for number in sorted(self._refused & set(self._open)):
            if number not in self._open:
                continue
            held = self._open.pop(number)
            self._orders.discard(number)
            self._await_answer(held, f"{number} is refused")
            self._is_status(held, REFUSED)
            self._requests.leave(held)

    def _await_answer(self, held: Held, what: str) -> None:
        self._until(lambda: held.is_answered, what)

    def _is_status(self, held: Held, status: int) -> None:
        if held.status != status:
            self._part(f"request {held.number} is answered {held.status} instead of {status}")

    # ---- what the server does by itself

    def _look(self) -> None:
        """What has come and gone since, in the order of the server's own log; and time has passed."""
        cards, rules = self._cards(), self.rules
        told = {name: TOLD[cards[name]["status"]["value"]] for name in NAMES}
        for name in self._came(told):
            self._note(f"{name} has come")
            self._follow(rules.loaded(name, self._now()))
        for name in NAMES:
            if rules.state[name] == "leaving" and told[name] in ("out", "loading"):
                self._note(f"{name} has gone")
                self._follow(rules.gone(name, self._now()))
            if rules.state[name] == "in" and rules.has[name] != rules.will[name]:
                self._look_after_shrinking(name)
        for number in [n for n in self._admitted if self._open[n].is_over]:
            self.counts["ended by itself"] += 1
            self._leave(number)
        self._follow(rules.step(self._now()))

    def _came(self, told: dict[str, str]) -> list[str]:
        """Who is loaded by the log, and was not yet: it says in which order, too."""
        maybe = [n for n in NAMES if self.rules.state[n] == "loading" and told[n] != "loading"]
        if not maybe:
            return []
        loads = re.findall(r"(\w+) is loaded after", self._server.log())
        came = [name for name in maybe if loads.count(name) > self._loads[name]]
        self._loads.update(came)
        return sorted(came, key=lambda n: len(loads) - loads[::-1].index(n))

    def _look_after_shrinking(self, name: str) -> None:
        view = self._server.cluster()["models"][name]
        leaving = view["scaling"]["leaving"]
        if len(view["workers"]) == self._least_workers[name] and not leaving:
            self._note(f"{name} has shrunk")
            self._follow(self.rules.shrank(name, self._now()))

    # ---- both

    def _agree(self) -> None:
        """In the end, once nothing is on its way that the clock decides; Parted where not."""
        until_s = time.monotonic() + PATIENCE_S
        while True:
            self._look()
            near = self._is_near()
            told, expected = self._told(), self._expected()
            if not near and told == expected and self._are_answered():
                return
            if not near and time.monotonic() > until_s:
                self._part(f"told {told}, expected {expected}, answered {self._answered()}")
            if near:
                until_s = time.monotonic() + PATIENCE_S
            time.sleep(POLL_S)

    def _is_near(self) -> bool:
        """A moment at which the clock decides."""
        rules, now = self.rules, self._now()
        moments = [entry.came + SHUT_AFTER_S for entry in rules.line]
        for name in NAMES:
            keep = rules.keep[name]
            if rules.state[name] == "in" and not rules.users[name] and keep:
                moments.append(rules.used[name] + keep)
        return any(abs(now - moment) < MARGIN_S for moment in moments)

    def _told(self) -> dict[str, Any]:
        return {
            name: (
                TOLD[card["status"]["value"]],
                card["users"],
                card["waiting"],
                None if card["keep_alive_s"] == -1 else card["keep_alive_s"],
            )
            for name, card in self._cards().items()
        }

    def _expected(self) -> dict[str, Any]:
        rules = self.rules
        return {
            name: (
                rules.state[name],
                rules.users[name],
                sum(entry.name == name for entry in rules.line),
                rules.keep[name],
            )
            for name in NAMES
        }

    def _answered(self) -> set[int]:
        return {number for number, held in self._open.items() if held.is_answered}

    def _are_answered(self) -> bool:
        """Those whose turn it was, and nobody else."""
        if not all(held.status in (0, 200) for held in self._open.values()):
            self._part(f"somebody was refused: {self._open}")
        return self._answered() == self._admitted

    def _cards(self) -> dict[str, Any]:
        cards = self._server.client.get("/models").json()["data"]
        return {card["id"]: card for card in cards}

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        until_s = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > until_s:
                self._part(f"it did not happen that {what}")
            time.sleep(POLL_S)

    def _now(self) -> float:
        return time.monotonic()

    def _note(self, told: str) -> None:
        self.trail.append(f"{time.monotonic():.2f} {told}")

    def _part(self, told: str) -> None:
        raise Parted("\n".join([*self.trail[-60:], told]))


def write_config(base: Path, room: str) -> Path:
    """The file for that room, beside its models."""
    shape, words, _, _ = ROOMS[room]
    path = base / "baton.yaml"
    path.write_text(CONFIG.format(base=base, shape=shape, room=words, held=MAX_HELD))
    return path


def main() -> int:
    """Exit status 1 where they part."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--room", choices=ROOMS, default="bytes")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_longer_models(Path(folder))
        file = write_config(Path(folder), arguments.room)
        with Server("--config", str(file)) as server, HeldRequests(server.port) as requests:
            campaign = Campaign(server, requests, arguments.room, arguments.seed)
            started_s, parted = time.monotonic(), ""
            try:
                campaign.run(arguments.seconds)
            except Parted as error:
                parted = str(error)
            told = {
                "command": " ".join(["python -m tests.e2e.residency_campaign", *sys.argv[1:]]),
                "seconds": round(time.monotonic() - started_s),
                "steps": sum(n for what, n in campaign.counts.items() if "decided" not in what),
                "counts": dict(sorted(campaign.counts.items())),
                "loads": len(re.findall(r"\bloading \w+$", server.log(), re.MULTILINE)),
                "balanced": server.audit()["balanced"],
                "parted": parted,
            }
    print(text := json.dumps(told, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    return 1 if parted else 0


if __name__ == "__main__":
    sys.exit(main())

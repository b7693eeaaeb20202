"""A worker that dies at any token of an answer changes none: grammars, tools, several choices with seeds and penalties.

usage: python -m tests.e2e.kill_campaign [--thinks] [--pd SIZES] [--waves N] [--streams N] [--seed S] [CASE …]

What one pool says (0p1d) is the measure. Two pools are asked the same, first in peace and then in waves: streams that start so
many tokens apart that the death of their worker finds each of them at another token, one that no wave has tried yet. A server
serves a few waves, since a worker that dies young is started again later each time. Prints a line for each difference, and the counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import os
import random
import signal
import sys
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.e2e.grammar_cases import ASKED, HABIT, MESSAGES, PENALTIES, SAMPLED, TOOLS
from tests.e2e.server import Server
from tests.e2e.stream_campaign import CHAT, ENDS_THOUGHTS, THINKING, events_of, openai
from tests.patience import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    Aim = tuple[str, int]
    Fields = dict[str, Any]
    Folded = dict[Any, Any]

WAVES_A_SERVER = 4
TOGETHER = 4
"""Places so near that their streams start at once: prompts take some steps of the others, too."""
CASES: dict[str, Fields] = {
    name: {"messages": MESSAGES, **asked}
    for name, asked in ASKED.items()
    if name not in ("auto", "tgi", "guided_json")
} | {
    "auto": {
        "messages": [*HABIT, {"role": "user", "content": "Add Ada, who is 36."}],
        "tools": TOOLS,
        "temperature": 0.3,
    },
    "several": {"messages": MESSAGES, "n": 3, "max_tokens": 24} | PENALTIES,
    "several of a schema": {"messages": MESSAGES, "n": 2, "logit_bias": {"107": 1.5}}
    | {"logprobs": True, "top_logprobs": 2}
    | ASKED["json_schema"]
    | PENALTIES,
    "several calls": {"messages": MESSAGES, "n": 2} | ASKED["required"] | PENALTIES,
}

THOUGHTS: dict[str, Fields] = {
    f"thought, {name}": {"messages": [{"role": "user", "content": "Ada <think>"}]}
    | ENDS_THOUGHTS
    | ASKED[name]
    for name in ("json_schema", "regex", "required", "auto")
}
"""For a server that looks for thoughts: what follows them is kept to a form, or calls."""


def body_of(name: str) -> Fields:
    """What is asked."""
    return SAMPLED | {"seed": 1} | (CASES | THOUGHTS)[name]


def whole(server: Server, name: str) -> Folded:
    """What is answered when nobody dies."""
    return stable(openai([server.chat(**body_of(name))]))


def stable(told: Folded) -> Folded:
    """Without what depends on what a cache held."""
    told["usage"].pop("prompt_tokens_details", None)
    return told


def length(told: Folded) -> int:
    """Tokens of the first choice."""
    return len(told[0]["ids"])


@dataclass(slots=True)
class Stream:
    """One answer as it comes; `read` counts the tokens of its first choice."""

    name: str
    place: int
    """The token at which its worker shall die."""
    read: int = 0
    died_at: int = 0
    is_over: bool = False
    events: list[Fields] = field(default_factory=list)
    problem: str = ""

    def follow(self, server: Server, changed: threading.Condition) -> None:
        """Read it to its end, and tell of each event."""
        more = {"stream": True, "stream_options": {"include_usage": True}, "return_timings": True}
        try:
            with server.client.stream("POST", CHAT, json=body_of(self.name) | more) as reply:
                if reply.status_code != 200:
                    self.problem = reply.read().decode()
                for line in reply.iter_lines():
                    self.hear(line, changed)
        except Exception as error:  # noqa: BLE001 - whatever ends it early is what is looked for
            self.problem = f"{type(error).__name__}: {error}"
        finally:
            with changed:
                self.is_over = True
                changed.notify_all()

    def hear(self, line: str, changed: threading.Condition) -> None:
        for event in events_of(line):
            with changed:
                self.events.append(event)
                for choice in event.get("choices", ()):
                    if choice["index"] == 0:
                        self.read += len(choice.get("token_ids") or ())
                changed.notify_all()

    def replays(self) -> int:
        """How often it was begun again, as the server tells."""
        return max((e["baton"]["replays"] for e in self.events if "baton" in e), default=0)

    def difference(self, expected: Folded) -> str:
        """From what one pool says; "" if there is none."""
        if self.problem or any("error" in event for event in self.events):
            return f"it ended early: {self.problem or self.events[-1]}"
        told = stable(openai(self.events))
        return "" if told == expected else f"expected {expected!r} | told {told!r}"


def wave(server: Server, role: str, aims: Sequence[Aim]) -> list[Stream]:
    """Streams that have read what they shall, each of them, when the busiest worker of this role dies; then to their ends."""
    groups = [
        [Stream(*aim) for aim in together]
        for _, together in itertools.groupby(sorted(aims, key=started), started)
    ]
    streams = list(itertools.chain(*groups))
    changed = threading.Condition()
    threads = []
    for group, following in itertools.pairwise([*groups, []]):
        for stream in group:
            threads.append(
                threading.Thread(target=stream.follow, args=(server, changed), daemon=True)
            )
            threads[-1].start()
        later = following[0].place if following else 0
        await_tokens(group[0], group[0].place - later, changed)
    os.kill(busiest(server, role), signal.SIGKILL)
    with changed:
        for stream in streams:
            stream.died_at = stream.read
    for thread in threads:
        thread.join(2 * PATIENCE_S)
        assert not thread.is_alive(), "a stream has no end"
    return streams


def started(aim: Aim) -> int:
    """When a stream of a wave is started: those that shall be furthest first, some together."""
    return -(aim[1] // TOGETHER)


def await_tokens(stream: Stream, count: int, changed: threading.Condition) -> None:
    """Until it has read so many, or is over."""
    with changed:
        came = changed.wait_for(lambda: stream.is_over or stream.read >= count, PATIENCE_S)
    assert came, f"{stream.name} stands still"


def busiest(server: Server, role: str) -> int:
    """The pid of the worker of a role that has most requests."""
    workers = [one for one in server.cluster()["workers"] if one["role"] == role]
    pid: int = max(workers, key=lambda one: sum(one["requests"].values()))["pid"]
    return pid


class Places:
    """Tokens of every answer at which no worker has died yet."""

    def __init__(self, lengths: dict[str, int], seed: int) -> None:
        self._open = {name: set(range(count)) for name, count in lengths.items()}
        self._draw = random.Random(seed)
        self.count = sum(lengths.values())

    def left(self) -> int:
        """How many."""
        return sum(map(len, self._open.values()))

    def aims(self, count: int) -> list[Aim]:
        """Some of them, of every answer in turn."""
        shuffled = {
            name: self._draw.sample(sorted(own), len(own)) for name, own in self._open.items()
        }
        rounds = itertools.zip_longest(*shuffled.values())
        aims = [
            (name, place)
            for one in rounds
            for name, place in zip(shuffled, one, strict=True)
            if place is not None
        ]
        return aims[:count]

    def tried(self, stream: Stream) -> None:
        """It counts where the server says that it began again."""
        if stream.replays():
            self._open[stream.name].discard(stream.died_at)


@dataclass(slots=True)
class Outcome:
    """Of a campaign."""

    differences: list[str] = field(default_factory=list)
    streams: int = 0
    replayed: int = 0
    deaths: int = 0
    places: int = 0
    places_left: int = 0


def campaign(
    servers: Callable[[], AbstractContextManager[Server]],
    expected: dict[str, Folded],
    waves: int,
    streams: int,
    seed: int = 1,
) -> Outcome:
    """Until workers have died at every token, or so many have died."""
    places = Places({name: length(told) for name, told in expected.items()}, seed)
    outcome = Outcome(places=places.count)
    while places.left() and outcome.deaths < waves:
        with servers() as server:
            size = len(server.cluster()["workers"])
            for _ in range(min(WAVES_A_SERVER, waves - outcome.deaths)):
                until(functools.partial(are_ready, server, size), "every worker being ready")
                role = "prefill" if outcome.deaths % 8 == 7 else "decode"
                for stream in wave(server, role, places.aims(streams)):
                    places.tried(stream)
                    outcome.streams += 1
                    outcome.replayed += stream.replays() > 0
                    if told := stream.difference(expected[stream.name]):
                        found = f"{stream.name}, {role} died at {stream.died_at}: {told}"
                        outcome.differences.append(found)
                        print(found[:3000], flush=True)
                outcome.deaths += 1
                print(
                    f"{outcome.deaths} deaths, {places.left()} of {places.count} places left",
                    file=sys.stderr,
                )
            assert server.audit()["balanced"]
    outcome.places_left = places.left()
    return outcome


def are_ready(server: Server, size: int) -> bool:
    """Whether as many workers as at the start are."""
    return [one["state"] for one in server.cluster()["workers"]] == ["ready"] * size


def main() -> int:
    """Exit status 1 for any difference."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--thinks", action="store_true", help="cases of thoughts")
    parser.add_argument("--pd", default="1p1d")
    parser.add_argument("--waves", type=int, default=40)
    parser.add_argument("--streams", type=int, default=48)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    options = ("--kv-cache-memory", "512MiB", *(THINKING if arguments.thinks else ()))
    names = arguments.cases or list(THOUGHTS if arguments.thinks else CASES)
    with Server("--pd", "0p1d", *options) as server:
        expected = {name: whole(server, name) for name in names}
    with Server("--pd", arguments.pd, *options) as server:
        peaceful = [name for name in names if whole(server, name) != expected[name]]
    servers = functools.partial(Server, "--pd", arguments.pd, *options)
    outcome = campaign(servers, expected, arguments.waves, arguments.streams, arguments.seed)
    print(*(f"differs in peace: {name}" for name in peaceful), sep="\n")
    count = len(peaceful) + len(outcome.differences)
    ends = {name: own[0]["finish_reason"] for name, own in expected.items()}
    print(json.dumps(dataclasses.asdict(outcome) | {"differences": count, "ends": ends}))
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())

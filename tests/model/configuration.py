"""What is explored. Owns the sizes and how many faults of each kind one run may have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import combinations

from tests.model.surroundings import oracle


@dataclass(frozen=True)
class Faults:
    """How often each may happen in one run; a state remembers what is left."""

    drop: int = 0
    duplicate: int = 0
    reorder: int = 0
    crash: int = 0
    fence: int = 0
    cancel: int = 0
    lease: int = 0
    renew: int = 0
    flip: int = 0
    refuse: int = 0
    impatience: int = 0
    drain: int = 0
    role: int = 0
    audit: int = 0
    ping: int = 0
    forget: int = 0
    reject: int = 0
    late: int = 0
    handover: int = 0
    keep: int = 0
    listing: int = 0
    sleep: int = 0


@dataclass(frozen=True)
class Configuration:
    """One prefill worker P, one decode worker D, and a few requests. Of prompts longer than
    `hint_tokens`, if that is not 0, the coordinator believes so many cached at D. `in_turn`: each is submitted when the one
    before has ended. `scored`: the prompts' tokens are, too. `late_flush`: what a step gathered is said as a move of its own, so anything may come before it."""

    name: str
    prompts: Mapping[str, tuple[int, ...]]
    max_tokens: int = 2
    block_size: int = 2
    blocks: dict[str, int] = field(default_factory=lambda: {"P": 3, "D": 3})
    chunk_tokens: int = 2
    headroom_tokens: int = 256
    hint_tokens: int = 0
    in_turn: bool = False
    late_flush: bool = False
    scored: bool = False
    faults: Faults = field(default_factory=Faults)
    _expected: dict[str, list[int]] = field(default_factory=dict, compare=False)

    def oracle(self, request_id: str) -> list[int]:
        """Tokens of a request in a faultless run."""
        found = self._expected.get(request_id)
        if found is None:
            prompt = list(self.prompts[request_id])
            found = self._expected[request_id] = oracle(self.block_size, prompt, self.max_tokens)
        return found


ONE = {"a": (1, 2, 3)}
TWO = {"a": (1, 2, 3), "b": (1, 2, 9)}
SHORT = {"a": (1, 2), "b": (1, 7)}

CHAT = {"a": (1, 2, 3), "b": (1, 2, 3, *oracle(2, [1, 2, 3], 2), 9)}
"""Two turns: the second begins with the first and its answer."""

AT_ONCE = {"a": (1, 2, 3, 4), "b": (1, 2, 9)}
LOSING = (*("drop", "duplicate", "reorder", "crash", "fence", "cancel", "lease", "flip"), "drain")
KINDS = tuple(kind.name for kind in fields(Faults))
ORDERS = ("role", "audit", "ping", "forget", "reject", "keep", "listing", "sleep")
"""Orders that an operator may give at any time, beside drain."""
HANDOVER = {"role": 1, "handover": 1}
"""To whom there is somebody to hand over: P decodes, too."""


def once(kind: str) -> Faults:
    """One fault of a kind, with what it takes to happen at all."""
    return Faults(**(HANDOVER if kind == "handover" else {kind: 1}))


COMPLETE = (
    Configuration("none", TWO),
    Configuration("none, two at once", SHORT, max_tokens=3, headroom_tokens=0),
    *[Configuration(f"{kind}, two in turn", TWO, faults=once(kind)) for kind in KINDS],
    *[
        Configuration(
            f"{kind}, two at once",
            SHORT,
            max_tokens=3,
            headroom_tokens=0,
            faults=once(kind),
        )
        for kind in KINDS
    ],
    *[
        Configuration(
            f"{kind}, chat",
            CHAT,
            blocks={"P": 4, "D": 4},
            hint_tokens=4,
            in_turn=True,
            faults=once(kind),
        )
        for kind in KINDS
    ],
    Configuration("none, scored alone", TWO, max_tokens=0, scored=True),
    Configuration("none, scored", AT_ONCE, blocks={"P": 4, "D": 5}, scored=True),
    *[
        Configuration(
            f"{kind}, scored {'alone' if count == 0 else 'and answered'}",
            ONE,
            max_tokens=count,
            scored=True,
            faults=Faults(**{kind: 1}),
        )
        for kind in LOSING
        for count in (0, 2)
    ],
    *[
        Configuration(f"{first}+{second}", ONE, faults=Faults(**{first: 1, second: 1}))
        for first, second in combinations(
            [kind for kind in KINDS if kind not in (*ORDERS, "handover")], 2
        )
    ],
    Configuration("handover", ONE, max_tokens=3, faults=Faults(**HANDOVER)),
    Configuration("handover+cancel", ONE, max_tokens=3, faults=Faults(cancel=1, **HANDOVER)),
    *[
        Configuration(f"{order}+{other}", ONE, faults=Faults(**{order: 1, other: 1}))
        for order in ORDERS
        for other in ("drop", "drain")
    ],
    *[
        Configuration(f"keep+{other}", ONE, faults=Faults(**{"keep": 1, other: 1}))
        for other in ("crash", "fence", "lease", "flip", "cancel", "duplicate", "impatience")
    ],
    *[
        Configuration(f"sleep+{other}", ONE, faults=Faults(**{"sleep": 1, other: 1}))
        for other in ("crash", "fence", "lease", "flip", "cancel", "duplicate", "reorder", "keep")
    ],
)
"""Small enough to be explored to the last state."""

BOUNDED = (
    Configuration("network", ONE, faults=Faults(drop=1, duplicate=1, reorder=1, cancel=1)),
    Configuration("death", ONE, faults=Faults(crash=1, fence=1, cancel=1, lease=1)),
    Configuration(
        "pressure",
        SHORT,
        max_tokens=3,
        headroom_tokens=0,
        faults=Faults(drop=1, cancel=1, lease=1, flip=1),
    ),
    Configuration(
        "torn",
        TWO,
        blocks={"P": 2, "D": 3},
        faults=Faults(cancel=1, lease=2, renew=1, flip=1, refuse=1),
    ),
    Configuration(
        "chat",
        CHAT,
        blocks={"P": 4, "D": 4},
        hint_tokens=4,
        in_turn=True,
        faults=Faults(drop=1, crash=1, cancel=1, lease=1, flip=1, impatience=1),
    ),
    Configuration(
        "everything",
        ONE,
        faults=Faults(1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    ),
    Configuration(
        "orders",
        ONE,
        faults=Faults(cancel=1, fence=1, **dict.fromkeys(("drain", "late", *ORDERS), 1)),
    ),
    Configuration(
        "said late",
        ONE,
        late_flush=True,
        faults=Faults(crash=1, fence=1, cancel=1, drain=1, audit=1, late=1),
    ),
    Configuration(
        "handed over",
        ONE,
        max_tokens=4,
        blocks={"P": 4, "D": 4},
        faults=Faults(drop=1, crash=1, lease=1, impatience=1, drain=1, **HANDOVER),
    ),
    Configuration(
        "kept",
        TWO,
        blocks={"P": 3, "D": 3},
        faults=Faults(drop=1, crash=1, lease=1, flip=1, keep=2, listing=1),
    ),
    Configuration(
        "asleep",
        CHAT,
        blocks={"P": 4, "D": 4},
        hint_tokens=4,
        in_turn=True,
        faults=Faults(duplicate=1, crash=1, lease=1, keep=1, sleep=2),
    ),
    Configuration(
        "two",
        TWO,
        blocks={"P": 3, "D": 3},
        headroom_tokens=0,
        faults=Faults(drop=1, duplicate=1, crash=1, fence=1, cancel=1, lease=1),
    ),
)
"""Explored breadth first as far as the bound allows."""

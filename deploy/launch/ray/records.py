"""What owner, agent, seat and keeper tell each other. Owns these records and their lines of JSON.

owner   `baton serve`            decides what runs, with which spec           no Ray, no torch
agent   the Ray driver           makes one seat a process, passes things on   Ray
seat    a Ray actor              holds the place on its node                  Ray
keeper  a process on the node    runs the engine process, starts it again     no Ray

owner ── OwnerOrder ──► agent ── calls ──► seat ── SeatOrder ──► keeper ── spec file ──► worker_main
      ◄─ AgentReport ──       ◄── news ──       ◄── KeeperNews ──
"""

from __future__ import annotations

import msgspec

from protocol.specs import CoordinatorSpec, WorkerSpec


class Record(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """Root: tagged with its class name."""


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A node as a process on it sees it. `session` names this run of Ray, `resources` are what
    the node offers to it, `free_port` is one on `ip`."""

    node_id: str
    session: str
    ip: str
    hostname: str
    cores: tuple[int, ...]
    quota: float | None
    available_bytes: int
    free_port: int
    resources: dict[str, float] = {}


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """What Ray must find on one node for a seat."""

    num_cpus: float = 0.0
    num_gpus: float = 0.0
    resources: dict[str, float] = {}

    def bundle(self) -> dict[str, float]:
        """As Ray's autoscaler takes it."""
        amounts = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return {name: amount for name, amount in amounts.items() if amount}


# ---- owner → agent


class Sit(Record, frozen=True, kw_only=True):
    """Find a place for a process; it may be one that runs already."""

    name: str
    demand: Demand


class Run(Record, frozen=True, kw_only=True):
    """Run the process where its seat is. One that runs there already is kept, and told the new spec; else
    a fresh one has this `generation`, which grows from start to start. `model_source` is what a person
    named: a node that lacks the prepared model makes it from that. `chat_template` is its text.
    `only_keep`: it is about to leave; where nothing of it runs, nothing is started."""

    name: str
    generation: int
    coordinator: CoordinatorSpec | None = None
    worker: WorkerSpec | None = None
    num_threads: int = 1
    model_source: str = ""
    chat_template: str | None = None
    shutdown_timeout_s: float = 2.0
    only_keep: bool = False


class Leave(Record, frozen=True, kw_only=True):
    """End the process and give its place back."""

    name: str


class Finish(Record, frozen=True, kw_only=True):
    """End everything, and then yourself."""


# ---- keeper → seat → agent → owner


class Line(Record, frozen=True, kw_only=True):
    """A process printed this."""

    name: str
    text: str


class Started(Record, frozen=True, kw_only=True):
    """A process runs; `kept`: it ran before its seat came."""

    name: str
    pid: int
    kept: bool = False


class Ready(Record, frozen=True, kw_only=True):
    """The coordinator serves; `news` is the rest of its line."""

    name: str
    news: str


class Ended(Record, frozen=True, kw_only=True):
    """A process ended. `restart_in_s` is None when its keeper ended with it: it left by itself, or was told to."""

    name: str
    pid: int
    status: int
    restart_in_s: float | None
    last_line: str = ""


class Leaving(Record, frozen=True, kw_only=True):
    """The machine will be taken away: these processes have about `deadline_s` left."""

    names: tuple[str, ...]
    deadline_s: float


# ---- agent → owner


class Attached(Record, frozen=True, kw_only=True):
    """Ray is there. `resources` sums what alive nodes offer; `head_ip` is where the coordinator will be."""

    address: str
    version: str
    session: str
    head_ip: str
    num_nodes: int
    resources: dict[str, float]
    has_authentication: bool


class Offered(Record, frozen=True, kw_only=True):
    """Nodes came or went: `resources` sums what those offer that are there now."""

    resources: dict[str, float]


class Placed(Record, frozen=True, kw_only=True):
    """A seat has its node; now it waits for a Run."""

    name: str
    node: NodeFacts


class Waiting(Record, frozen=True, kw_only=True):
    """No node has room for a seat yet."""

    name: str
    demand: Demand


class Unseated(Record, frozen=True, kw_only=True):
    """The seat is gone (`reason`): a new one is looked for. Its process may go on meanwhile."""

    name: str
    reason: str


class Gone(Record, frozen=True, kw_only=True):
    """After a Leave: nothing of it is left."""

    name: str


class Away(Record, frozen=True, kw_only=True):
    """Ray does not answer."""

    reason: str


class Back(Record, frozen=True, kw_only=True):
    """Ray answers again."""


class Failed(Record, frozen=True, kw_only=True):
    """The process cannot be run on its node; `reason` is for people."""

    name: str
    reason: str


OwnerOrder = Sit | Run | Leave | Finish
KeeperNews = Line | Started | Ready | Ended | Leaving
AgentReport = (
    KeeperNews | Attached | Offered | Placed | Waiting | Unseated | Gone | Away | Back | Failed
)


# ---- seat → keeper


class KeeperHello(Record, frozen=True, kw_only=True):
    """A keeper's first words to a seat."""

    name: str
    generation: int
    node_id: str
    session: str
    engine_pid: int
    ready: str | None


class End(Record, frozen=True, kw_only=True):
    """SIGTERM, after `timeout_s` SIGKILL; then end yourself."""

    timeout_s: float


class Adopt(Record, frozen=True, kw_only=True):
    """The seat keeps you: you are on this node of this session now."""

    node_id: str
    session: str


SeatOrder = End | Adopt


class KeeperOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a keeper runs; a file, mode 0600. `run_directory` is the engine's own, for its sockets."""

    name: str
    generation: int
    module: str
    spec_path: str
    run_directory: str
    num_threads: int
    gpu: str | None = None
    node_id: str
    session: str
    tells_ready: bool
    shutdown_timeout_s: float

"""A simulated launcher. Owns how long a start and an end take; who should run is the production roster's.

Its line to the coordinator keeps the order, and may lose.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Protocol

import msgspec

from launching.foreman import Foreman
from launching.roster import HELLO_EVERY_S, Exit, Place, Roster, Start
from protocol import wire
from protocol.errors import ConfigError
from protocol.messages.launcher import LauncherOrder, ScaleOrder
from protocol.model_config import ModelConfig
from protocol.roles import Role
from protocol.specs import PreparedModel, WorkerSpec
from tests.sim.network import Faults, Network
from tests.sim.virtual_loop import VirtualClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from launching.roster import Message
    from tests.sim.virtual_loop import VirtualLoop

NAME = "launcher"
KILLED = -9
MODEL = PreparedModel(
    name="mock",
    served_names=("mock",),
    directory="/nowhere",
    config=ModelConfig(
        family="llama",
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        max_position_embeddings=64,
    ),
    dtype="float32",
    weights_hash="w",
    tokenizer_hash="t",
)


class Processes(Protocol):
    """What the launcher can do to the simulated workers."""

    loop: VirtualLoop

    def hear_launcher(self, frame: bytes) -> None:
        """Its line to the coordinator that runs now."""

    def is_alive(self, worker_id: str) -> bool:
        """Whether a start of it runs."""
        ...

    def begin(self, spec: WorkerSpec, pid: int) -> None:
        """A new start, empty."""

    def terminate(self, worker_id: str) -> None:
        """SIGTERM."""


class SimLauncher:
    """As deploy.launch.local.launcher, without processes."""

    def __init__(
        self, processes: Processes, roles: dict[str, Role], seed: int, lose: float
    ) -> None:
        self.processes = processes
        self.rng = random.Random(seed)
        self.line = Network(processes.loop, random.Random(seed + 1), Faults(lose=lose))
        self.roster = Roster("sim", 0, self._more)
        self.foreman = Foreman(self.roster, self, VirtualClock(processes.loop))
        self.room = 12
        self.start_s = (0.05, 0.8)
        self._decoder = wire.Decoder[LauncherOrder](LauncherOrder)
        for name, role in roles.items():
            self.roster.add(_spec(name, role))

    def begin(self) -> None:
        """Every worker of the plan, and the first of many hellos."""
        for place in self.roster:
            self.start_now(place.name)
        self.roster.served()
        self._greet()

    def _greet(self) -> None:
        self.tell(self.roster.hello())
        self.processes.loop.call_later(HELLO_EVERY_S, self._greet)

    def order(self, message: msgspec.Struct) -> None:
        """From the coordinator."""
        self.line.send("coordinator", NAME, message, self._obey)

    def _obey(self, frame: bytes) -> None:
        self.foreman.on_order(self._decoder.decode(frame))

    def _more(self, order: ScaleOrder, now_s: float) -> WorkerSpec:
        del now_s
        if len(self.roster.workers) >= self.room:
            raise ConfigError(f"{self.room} is enough")
        return _spec(order.worker_id, order.role)

    def exited(self, worker_id: str) -> None:
        """A process ended, whoever wanted that."""
        self.foreman.exited(worker_id, Exit(KILLED))

    def start_now(self, worker_id: str) -> None:
        """Whatever the backoff says; nothing where there is no place for it, or a start of it runs."""
        place = self.roster.get(worker_id)
        if place is None or self.processes.is_alive(worker_id):
            return
        for action in self.roster.due(place):
            assert isinstance(action, Start)
            place.runs_as(self.roster.begin(place, self.processes.loop.time()))
            assert place.worker is not None
            self.processes.begin(place.worker, place.pid)

    # ---- launching.foreman.Crew

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        self.processes.loop.call_later(delay_s, action)

    def start(self, place: Place) -> None:
        """A process takes a while to come up."""
        self.later(self.rng.uniform(*self.start_s), partial(self.start_now, place.name))

    def respec(self, place: Place) -> None:
        """The next start is made from the place's spec."""

    def tell(self, message: Message) -> None:
        self.line.send(NAME, "coordinator", message, self.processes.hear_launcher)

    def say(self, name: str, text: str) -> None:
        """Nobody reads along."""

    def fail(self, error: Exception) -> None:
        raise error

    def end(self, place: Place) -> None:
        if self.processes.is_alive(place.name):
            delay_s = self.rng.uniform(0.001, 0.05)
            self.processes.loop.call_later(delay_s, self.processes.terminate, place.name)
        else:
            self.foreman.gone(place.name, 0)


def _spec(worker_id: str, role: Role) -> WorkerSpec:
    return WorkerSpec(
        worker_id=worker_id, role=role, model=MODEL, control="sim", run_directory="/nowhere"
    )

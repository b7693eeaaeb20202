"""A simulated launcher. Owns how long a start takes, and the specs of workers that are only simulated; who should run is
the production roster's.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from launching.foreman import Foreman
from launching.roster import Place, Roster
from protocol.model_config import ModelConfig
from protocol.specs import PreparedModel, WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from launching.roster import Message
    from protocol.messages.launcher import ScaleOrder
    from protocol.roles import Role

PID = 1
MODEL = PreparedModel(
    name="sim",
    served_names=("sim",),
    directory="",
    config=ModelConfig(
        family="llama",
        vocab_size=1,
        hidden_size=1,
        intermediate_size=1,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=1,
        rms_norm_eps=1e-5,
        rope_theta=1e4,
        max_position_embeddings=1,
    ),
    dtype="bytes",
    weights_hash="w",
    tokenizer_hash="t",
)


class Processes(Protocol):
    """What a launcher does to the simulated cluster. Times are virtual."""

    @property
    def now_s(self) -> float:
        """Virtual seconds."""
        ...

    def at(self, at_s: float, action: Callable[[Any], None], argument: Any) -> None:
        """Call `action(argument)` at that time."""
        ...

    def join(self, place: Place) -> None:
        """A process is up, and says hello."""
        ...

    def stop(self, place: Place) -> None:
        """It ends."""
        ...

    def hear_launcher(self, message: Message) -> None:
        """The launcher tells the coordinator."""
        ...


class SimLauncher:
    """The foreman's crew: as many workers as are asked for, each up after `start_s`; ends are at once, in their turn."""

    def __init__(self, processes: Processes, start_s: float) -> None:
        self.roster = Roster("sim", 0, self._more)
        self.foreman = Foreman(self.roster, self, self)
        self._processes = processes
        self._start_s = start_s

    def now_s(self) -> float:
        """The foreman's clock."""
        return self._processes.now_s

    def plan(self, role: Role, count: int) -> None:
        """What is there from the beginning."""
        for index in range(count):
            self._begin(self.roster.add(_spec(f"{role}-{index}", role)))

    def greet(self) -> None:
        """Once: nothing that it says is lost here."""
        self.roster.served()
        self.tell(self.roster.hello())

    def _begin(self, place: Place) -> None:
        self.roster.begin(place, self.now_s())
        place.runs_as(PID)

    def _more(self, order: ScaleOrder, now_s: float) -> WorkerSpec:
        del now_s
        return _spec(order.worker_id, order.role)

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """See Crew."""
        self._processes.at(self.now_s() + delay_s, lambda _: action(), None)

    def start(self, place: Place) -> None:
        """See Crew."""
        self._begin(place)
        self.later(self._start_s, partial(self._is_up, place))

    def _is_up(self, place: Place) -> None:
        if self.roster.get(place.name) is place:
            self._processes.join(place)

    def end(self, place: Place) -> None:
        """See Crew."""
        self.later(0.0, partial(self._ended, place))

    def _ended(self, place: Place) -> None:
        if self.roster.get(place.name) is place:
            self._processes.stop(place)
            self.foreman.gone(place.name, 0)

    def respec(self, place: Place) -> None:
        """See Crew: nothing starts again here."""

    def tell(self, message: Message) -> None:
        """See Crew."""
        self._processes.hear_launcher(message)

    def say(self, name: str, text: str) -> None:
        """See Crew: nobody reads along."""

    def fail(self, error: Exception) -> None:
        """See Crew."""
        raise error


def _spec(worker_id: str, role: Role) -> WorkerSpec:
    return WorkerSpec(worker_id=worker_id, role=role, model=MODEL, control="", run_directory="")

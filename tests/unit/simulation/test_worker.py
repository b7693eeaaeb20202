"""A simulated worker alone: what it says of where a prompt's time went."""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from protocol.messages.orders import Prefill, Sleep
from protocol.sampling import SamplingParams
from protocol.sleeping import Part
from protocol.spans import Span
from simulation.worker import SimWorker
from tests.unit.simulation.test_cluster import HARDWARE

if TYPE_CHECKING:
    from collections.abc import Callable

    from protocol.messages.reports import Output


class Wires:
    """Satisfies simulation.surroundings.Surroundings; nobody else is there."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.outputs: dict[str, Output] = {}
        self.rested: list[tuple[float, list[Part]]] = []
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._numbers = itertools.count()

    def at(self, at_s: float, action: Callable[[Any], None], argument: Any) -> None:
        heapq.heappush(self._events, (at_s, next(self._numbers), action, argument))

    def run(self) -> None:
        while self._events:
            self.now_s, _, action, argument = heapq.heappop(self._events)
            action(argument)

    def request(self, request_id: str) -> None:
        return None

    def cached_on(self, worker_id: str, chunks: tuple[int, ...]) -> int:
        return 0

    def is_written_by(self, worker_id: str, request_id: str) -> bool:
        return False

    def tell(self, worker_id: str, incarnation: str, outputs: list[Output]) -> None:
        self.outputs |= {output.request_id: output for output in outputs}

    def land(self, landing: tuple[str, Any]) -> None: ...

    def rests(self, worker_id: str, incarnation: str, away: list[Part]) -> None:
        self.rested.append((self.now_s, away))

    def goodbye(self, worker_id: str, incarnation: str) -> None: ...


def order(name: str, num_tokens: int, due_in_s: float) -> Prefill:
    return Prefill(
        incarnation="p1",
        request_id=name,
        attempt=1,
        token_ids=[0] * num_tokens,
        num_prompt_tokens=num_tokens,
        sampling=SamplingParams(max_tokens=1),
        deadline_in_s=600.0,
        due_in_s=due_in_s,
    )


def test_a_prompt_that_is_set_aside_waits_and_is_not_computed() -> None:
    wires = Wires()
    worker = SimWorker(wires, "P", "p1", HARDWARE)
    worker.hear(order("long", 20_000, due_in_s=100.0))
    wires.at(5.0, worker.hear, order("short", 1000, due_in_s=0.0))
    wires.run()
    assert wires.outputs["long"].spans == pytest.approx({Span.QUEUE: 1.0, Span.PREFILL: 20.0})
    assert wires.outputs["short"].spans[Span.PREFILL] == pytest.approx(1.0)


def test_a_worker_sleeps_when_it_has_nothing_left_and_wakes_for_work() -> None:
    wires = Wires()
    worker = SimWorker(wires, "P", "p1", HARDWARE)
    worker.hear(order("first", 1000, due_in_s=10.0))
    wires.at(0.5, worker.hear, Sleep(incarnation="p1", parts=[Part.KV_CACHE]))
    wires.at(5.0, worker.hear, order("second", 1000, due_in_s=10.0))
    wires.run()
    assert wires.rested == [(pytest.approx(1.0), [Part.KV_CACHE]), (5.0, [])]
    assert wires.outputs.keys() == {"first", "second"}

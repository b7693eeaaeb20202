"""What all parts of one worker share. Owns who the worker is, what time it is and where names come from; decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protocol.clock import Clock
    from protocol.ids import Ids


@dataclass(slots=True)
class WorkerContext:
    """One worker's identity; `incarnation` changes when the coordinator fences it. `unheard_s` is how
    long the loop had not listened before it heard what it hears now: a step that ran, mostly."""

    worker_id: str
    incarnation: str
    fingerprint_hash: bytes
    clock: Clock
    ids: Ids
    lease_duration_s: float = 30.0
    unheard_s: float = 0.0

"""What all parts of one worker share. Owns who the worker is, what time it is and where names come from; decides nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.errors import ConfigError
from protocol.failures import ErrorKind, Failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from protocol.adapters import AdapterRef, AdapterSource, HeldAdapter
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
    vocab_size: int | None = None
    adapters: AdapterSource | None = None

    def listened(self, before_s: float) -> None:
        """The loop listens now, and did so last at `before_s`."""
        self.unheard_s = self.clock.now_s() - before_s

    def start_over(self) -> None:
        """What was done under the old name is nobody's any more."""
        self.incarnation = self.ids.new_incarnation()

    def hold_adapter(self, ref: AdapterRef | None) -> HeldAdapter | Failure | None:
        """What an order's adapter needs; or why it cannot be had, which ends its request, not the worker."""
        if ref is None:
            return None
        if self.adapters is None:
            return Failure(
                ErrorKind.INTERNAL, f"this worker's engine has no adapters: {ref.name!r}"
            )
        try:
            return self.adapters.hold(ref)
        except ConfigError as error:
            return Failure(ErrorKind.INTERNAL, str(error))

    def beyond_vocabulary(self, token_ids: Sequence[int]) -> Failure | None:
        """Why a prompt cannot be embedded: a token that the model has no row for. It ends its request, not the worker."""
        size = self.vocab_size
        if size is None or not token_ids or (min(token_ids) >= 0 and max(token_ids) < size):
            return None
        first = next(token_id for token_id in token_ids if not 0 <= token_id < size)
        return Failure(
            ErrorKind.INTERNAL, f"token id {first} is not in the model's vocabulary of {size}"
        )

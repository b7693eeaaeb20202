"""What a store computes with: nothing. Owns the refusal; satisfies engine.runner_api.Runner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from engine.kv.sequence import Scheduled
    from protocol.sampling import SampledToken


class NoEngine:
    """There is no model in this worker's memory; no sequence ever gets here."""

    backend = "none (a store)"

    def execute(self, batch: SequenceOf[Scheduled]) -> list[SampledToken | None]:
        """Raises InternalError: the loop takes no request where there is no engine."""
        raise InternalError(f"{len(batch)} sequences were scheduled in a store")

"""What the coordinator has been told of a running sequence. Owns which durations travel with which token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocol.spans import Span

if TYPE_CHECKING:
    from engine.kv.sequence import Sequence
    from protocol.spans import Spans


@dataclass(slots=True)
class Progress:
    """`spans` wait for the next output. `adopted_s` is None for a prompt that is computed here."""

    spans: Spans = field(default_factory=dict)
    adopted_s: float | None = None
    num_pulled_blocks: int = 0
    is_first_step: bool = True

    def adopted(self, now_s: float, spans: Spans, num_blocks: int) -> None:
        """All KV of the prompt came from another worker."""
        self.adopted_s, self.spans, self.num_pulled_blocks = now_s, spans, num_blocks

    def take(self, sequence: Sequence, now_s: float) -> tuple[Spans, int]:
        """(durations, pulled blocks) to tell with a new token: at the adoption, and after the first step."""
        told, num_blocks = self.spans, self.num_pulled_blocks
        self.spans, self.num_pulled_blocks = {}, 0
        if not sequence.started_s or not self.is_first_step:
            return told, num_blocks
        self.is_first_step = False
        step_s = now_s - sequence.started_s
        if self.adopted_s is None:
            return told | sequence.prompt_spans(now_s), num_blocks
        step_wait_s = sequence.started_s - self.adopted_s
        return told | {Span.STEP_WAIT: step_wait_s, Span.FIRST_STEP: step_s}, num_blocks

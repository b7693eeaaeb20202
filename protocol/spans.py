"""What a worker measured of a request. Owns the names of its durations, which are those on the wire.

`coordinator.cluster.timeline` makes the stages of a request of them.
"""

from __future__ import annotations

import enum


class Span(enum.StrEnum):
    """What a worker's duration was spent on, in seconds."""

    UNHEARD = "unheard_s"
    """The order lay there while a step ended."""
    QUEUE = "queue_s"
    """Waited, before the prompt's first chunk or between two."""
    PREFIX_FETCH = "prefix_fetch_s"
    """Read what another worker has cached of the prompt."""
    PREFILL = "prefill_s"
    """Computed the prompt."""
    WAIT_BLOCKS = "wait_blocks_s"
    """From the order until there were blocks to read into."""
    EXPOSED_TRANSFER = "exposed_transfer_s"
    """From the last announcement until every block was proven."""
    STEP_WAIT = "step_wait_s"
    """From then until a step took it up."""
    FIRST_STEP = "first_step_s"
    """That step."""


Spans = dict[Span, float]

"""What an answer is made of, in nobody's dialect. Owns the seam between a run and an API: one says it, the other spells it.

    run ─► PromptEcho, Delta, Delta … Ending ─► Dialect ─► bytes
       └─► Failure (`coordinator.edge.http.error_replies`), before the first delta or instead of the ending

A token's log-probabilities come with it, as `protocol.sampling` has them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.edge.http.error_replies import Failure
    from coordinator.edge.telemetry.request_record import Timings
    from protocol.sampling import SampledToken


@dataclass(frozen=True, slots=True)
class PromptEcho:
    """A prompt as an answer may repeat it; `text` is "" unless the request asked for it."""

    token_ids: list[int]
    text: str = ""


@dataclass(slots=True)
class Delta:
    """What one choice says next. `tokens` made `text`; `token_ids` has the ending token too.

    `offsets` tells where each token's text begins, in characters of the choice's whole text.
    `finish_reason` is None but in a choice's last delta: "stop" or "length". `stop_reason` is the stop
    string or the id of the stop token that ended it, if one did.
    """

    index: int = 0
    text: str = ""
    tokens: list[SampledToken] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    offsets: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Usage:
    """Tokens of a whole request, growing while it runs; a prompt counts once for all its choices."""

    num_prompt_tokens: int
    num_output_tokens: int = 0
    num_cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """What only the end tells; `timings` for who asked for them."""

    usage: Usage
    timings: Timings | None = None


class Dialect(Protocol):
    """How one endpoint spells one answer; made for each request, and may remember what it said.

    A stream is `begin`, a `delta` for each but the last, then `end` or, whenever something breaks,
    `failure`. A whole answer is `whole` alone.
    """

    stream_media_type: str
    stream_headers: Mapping[str, str]
    whole_media_type: str

    def begin(self, usage: Usage) -> bytes:
        """What a stream says before its first delta; the prompt is counted in `usage`."""
        ...

    def delta(self, delta: Delta, usage: Usage) -> bytes:
        """A delta, and perhaps the count so far."""
        ...

    def end(self, delta: Delta, ending: Ending) -> bytes:
        """The last delta of all and everything after it."""
        ...

    def failure(self, failure: Failure) -> bytes:
        """How a stream that has begun tells that it ends here."""
        ...

    def whole(self, choices: Sequence[Delta], ending: Ending) -> bytes:
        """Everything at once: a joined delta for each choice."""
        ...

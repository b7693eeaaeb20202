"""What is asked and answered, in nobody's dialect. Owns the seam between an API and a run: one asks and spells, the other says.

    API ─► AnswerRequest, with SamplingWishes ─► run
    run ─► Delta, Delta … Ending ─► Dialect ─► bytes
       └─► Failure (`coordinator.edge.http.error_replies`), before the first delta or instead of the ending

A token's log-probabilities come with it, as `protocol.sampling` has them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

from coordinator.edge.answers.tools import NO_TOOLS
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from coordinator.edge.answers.tools import ToolUse
    from coordinator.edge.http.error_replies import Failure
    from coordinator.edge.telemetry.request_record import Timings
    from coordinator.edge.text.conversation import Conversation
    from protocol.constraints import Constraint
    from protocol.finish import FinishReason
    from protocol.sampling import Pooling, SampledToken, ScoredToken


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingWishes:
    """What a client said, in nobody's dialect; None where it was silent.

    `max_tokens_field` is what the client calls `max_tokens`, for errors; `constraint_field` what it calls its constraint,
    which `grammar_check` tries before an answer is begun. `logprobs` None is off, 0 tells
    the chosen token only, n tells the n best besides; `prompt_logprobs` is the same for the tokens of prompts. A `top_k`
    below 1 is off. `pooling` asks for a prompt's embedding instead of an answer.
    """

    max_tokens: int | None = None
    max_tokens_field: str = "max_tokens"
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    constraint: Constraint | None = None
    constraint_field: str = ""
    pooling: Pooling | None = None


class PromptScores(Protocol):
    """What an API makes of one prompt's log-probabilities."""

    def take(self, scores: Sequence[ScoredToken]) -> None:
        """Those of its next tokens; the first token has none."""
        ...


class Resumable(Enum):
    """Whether a stream outlives its connection, and whether its events need an `id` to be named by."""

    NO = "no"
    BY_NUMBER = "by number"
    BY_ID = "by id"


class NotSayable(InvalidRequest):
    """One deployment of a group cannot be asked this, and another may be."""

    code: str | None = "unsupported_parameter"


@dataclass(frozen=True, slots=True)
class RawPrompts:
    """Prompts as a client wrote them, texts or token ids, where whoever answers makes tokens of the texts. With `is_embedded`
    their embeddings are wanted, the first `dimensions` numbers of each; `truncates` cuts what is longer than a context."""

    said: Sequence[str | list[int]]
    add_special_tokens: bool = True
    is_embedded: bool = False
    dimensions: int | None = None
    truncates: bool = False

    @property
    def has_ids(self) -> bool:
        """Whether any of them is of one vocabulary already."""
        return any(not isinstance(prompt, str) for prompt in self.said)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRequest:
    """What a client wants, in nobody's dialect: each of `prompts`, continued `choices_per_prompt` times.

    `prompt_field` is what the client calls its prompt, for errors. The lowest `priority` goes first. `default_max_tokens` holds when the
    wishes name none. `operation`, `reply_id` and `model` are what traces call it. `has_parts` says that its
    dialect has room for reasoning and calls. `prompt_scores` are told how likely each prompt is, where the wishes ask.
    `conversation` is what the one prompt was made of, if it was; for a group of deployments there is no prompt, since each makes
    its own of that, or of `raw`. With `keeps_thoughts` a template without room for what earlier answers thought refuses it.
    """

    arrival_s: float
    operation: str
    reply_id: str
    model: str
    prompts: Sequence[list[int]]
    prompt_field: str
    wishes: SamplingWishes
    default_max_tokens: int
    choices_per_prompt: int = 1
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    cache_salt: str = ""
    priority: int = 0
    is_stream: bool = False
    resumable: Resumable = Resumable.NO
    tools: ToolUse = NO_TOOLS
    has_parts: bool = False
    wants_timings: bool = False
    prompt_scores: Sequence[PromptScores] = ()
    conversation: Conversation | None = None
    raw: RawPrompts | None = None
    keeps_thoughts: bool = False
    keep_alive_s: float | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of what is said to the user."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what was thought before."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """One call of a tool, `position` in its choice: `call_id` and `name` come first and once, and with
    them or later `arguments`, whose fragments joined are the text of a JSON object."""

    position: int
    call_id: str = ""
    name: str = ""
    arguments: str = ""


Part = TextDelta | ReasoningDelta | ToolCallDelta


@dataclass(slots=True)
class Delta:
    """What one choice says next. `tokens` made it; `token_ids` has the ending token too.

    `parts` are its pieces in order where an answer can have other parts than text, and then `text` is only
    what those of text say; without parts `text` is all. `offsets` tells where each token's text begins, in
    characters of all that the model wrote. `finish_reason` is None but in a choice's last delta: STOP,
    LENGTH or TOOL_CALLS, for which an API has its own words. `stop_reason` is the stop string or the id of the stop token that ended it, if one did.
    `embedding` is its prompt's, little-endian float32, in the last.
    """

    index: int = 0
    text: str = ""
    tokens: list[SampledToken] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    offsets: list[int] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    embedding: bytes = b""

    def pieces(self) -> list[Part]:
        """Its parts, also where it is text alone."""
        return self.parts or ([TextDelta(self.text)] if self.text else [])

    @property
    def reasoning(self) -> str:
        """What its reasoning says."""
        return "".join(part.text for part in self.parts if isinstance(part, ReasoningDelta))

    @property
    def calls(self) -> list[ToolCallDelta]:
        """What its calls say."""
        return [part for part in self.parts if isinstance(part, ToolCallDelta)]


@dataclass(slots=True)
class Usage:
    """Tokens of a whole request, growing while it runs; a prompt counts once for all its choices."""

    num_prompt_tokens: int
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    num_reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """What only the end tells; `timings` for who asked for them."""

    usage: Usage
    timings: Timings | None = None


def joined(deltas: Sequence[Delta]) -> Delta:
    """All of one choice's deltas as one; neighbouring parts of a kind are one part."""
    last = deltas[-1]
    return Delta(
        last.index,
        "".join(delta.text for delta in deltas),
        [token for delta in deltas for token in delta.tokens],
        [token_id for delta in deltas for token_id in delta.token_ids],
        last.finish_reason,
        last.stop_reason,
        [offset for delta in deltas for offset in delta.offsets],
        _merged([part for delta in deltas for part in delta.parts]),
        last.embedding,
    )


def _merged(parts: Sequence[Part]) -> list[Part]:
    return [_one(list(run)) for _, run in groupby(parts, _kind)]


def _kind(part: Part) -> tuple[type[Part], int]:
    return type(part), part.position if isinstance(part, ToolCallDelta) else 0


def _one(run: Sequence[Part]) -> Part:
    first = run[0]
    if isinstance(first, ToolCallDelta):
        said = "".join(part.arguments for part in run if isinstance(part, ToolCallDelta))
        return replace(first, arguments=said)
    text = "".join(part.text for part in run if not isinstance(part, ToolCallDelta))
    return replace(first, text=text)


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

"""What the HTTP edge needs of the cluster. Owns the seam between text and token ids; no implementation.

The edge turns text into a `Generation` and `StreamEvent`s back into text; the service behind it
knows workers and token ids only. Tests of the edge use an in-memory service.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from protocol.content_keys import content_salt

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

    from coordinator.cluster.timeline import Timeline
    from coordinator.cluster.traffic_split import Affinity
    from protocol.adapters import AdapterRef
    from protocol.errors import BatonError
    from protocol.finish import FinishReason
    from protocol.roles import Role
    from protocol.sampling import SampledToken, SamplingParams, ScoredToken
    from protocol.sleeping import Part


@dataclass(frozen=True, slots=True)
class Generation:
    """One choice to generate: token ids in, sampling resolved (seed set, max_tokens within context). Tenants share
    the workers by their `weight`; among one's requests the lowest `priority` goes first. `adapter` is that of its admission."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    deadline_in_s: float = 600.0
    cache_salt: str = ""
    adapter: AdapterRef | None = None
    tenant: str = ""
    weight: float = 1.0
    priority: int = 0

    @property
    def content_salt(self) -> str:
        """What must be equal of two generations, beside their tokens, for one to use what is cached of the other."""
        return content_salt(self.cache_salt, "" if self.adapter is None else self.adapter.digest)


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """Some more tokens, in order and exactly once; the last event has `finish_reason` or `error`.

    `finish_reason` is STOP (with `stop_token_id` when a requested stop token ended it) or
    LENGTH. `prompt_scores` are of the prompt's next tokens, the first token having none; all of them come
    before the first token or with it. `embedding` is the prompt's, little-endian float32, with the finish reason. `num_cached_tokens` is how much of the prompt came from a prefix cache. `at_s` is when
    the event left the service, on the edge's own clock; None when nobody noted it.
    """

    tokens: list[SampledToken] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    error: BatonError | None = None
    num_cached_tokens: int = 0
    at_s: float | None = None
    prompt_scores: list[ScoredToken] = field(default_factory=list)
    embedding: bytes = b""


class TokenStream(Protocol):
    """The events of one generation. Leaving early must be told with `cancel`.

    `timeline` says where the time went, and grows with the events.
    """

    timeline: Timeline

    def __aiter__(self) -> AsyncIterator[StreamEvent]: ...

    def listen(self, hear: Callable[[StreamEvent], None]) -> None:
        """Instead of iteration: `hear` is told of every event as it comes, and of what waits already at once."""
        ...

    def cancel(self, reason: str) -> None:
        """Abort in every pool and free the blocks; idempotent, harmless after the end."""
        ...

    def finish(self) -> None:
        """The text is complete, by a stop string: the same for the pools, and a good end for all who count."""
        ...


class Service(Protocol):
    """The cluster as the edge sees it."""

    def submit_all(self, generations: Sequence[Generation]) -> Sequence[TokenStream]:
        """Admit one request's generations, all or none, or raise at once: Overloaded (429 + Retry-After), Draining or
        WorkerLost (503), InvalidRequest (400) for what can never fit."""
        ...

    def is_ready(self) -> bool:
        """Whether a request sent now could be served."""
        ...

    def drain(self) -> dict[str, Any]:
        """Take nothing new from now on, and go on with what is here: `draining`, and how many requests are `live`."""
        ...

    def cluster(self) -> dict[str, Any]:
        """`GET /cluster`: see ARCHITECTURE §8 for the shape."""
        ...

    async def audit(self) -> dict[str, Any]:
        """`GET /cluster/audit`: every worker's account and the coordinator's own, with `balanced`."""
        ...


class ModelControl(Protocol):
    """Models that come and go, as the edge sees them; all by the name that answers give them."""

    async def enter(self, name: str, keep_alive_s: float | None = None) -> Callable[[], None]:
        """Wait until the model is in memory; the returned call ends the use. `keep_alive_s` below zero is for ever, None
        says nothing. Raises Overloaded, or ModelUnavailable."""
        ...

    async def load(self, name: str, keep_alive_s: float | None = None) -> None:
        """Bring it in, and wait for that."""
        ...

    def unload(self, name: str) -> None:
        """Take it out as soon as nobody uses it."""
        ...

    def view(self, name: str) -> dict[str, Any]:
        """Its state, and when it goes."""
        ...


class SleepControl(Protocol):
    """Models whose workers stay and give memory back, as the edge sees them; by the name that answers give them, and None means all
    that have workers."""

    async def sleep(self, model: str | None, level: int) -> None:
        """Returns when it is so. Raises PoolConflict where they cannot, or while they are used."""
        ...

    async def wake(self, model: str | None, parts: Iterable[Part]) -> None:
        """Returns when they have these parts again. Raises WorkerLost where they cannot."""
        ...

    def is_asleep(self, model: str | None) -> bool:
        """Whether all of them are."""
        ...


@dataclass(frozen=True, slots=True)
class Chosen:
    """The revision that answers a request, in use until `end` is called. `name` means it and no other."""

    name: str
    revision: str
    end: Callable[[], None]


class RevisionControl(Protocol):
    """Revisions of models as the edge sees them; a model that has none is not among them."""

    def choose(self, name: str, asked: Affinity) -> Chosen | None:
        """Which revision answers a request to that name; None for a model without revisions. Raises ModelNotFound for one that is
        named and not here."""
        ...

    def model_of(self, name: str) -> str | None:
        """What the cluster is called that the name means: of a model's own name that of its heaviest revision."""
        ...

    def public_name(self, name: str) -> str:
        """What keys, prices and clients call the model: the name without its revision."""
        ...

    def names(self, model: str) -> tuple[str, ...] | None:
        """What clients may call that cluster's model now; None for one without revisions."""
        ...

    async def start(self, name: str, revision: str, model: str | None, weight: float) -> None:
        """Load a revision beside those that serve, and give it that part of new conversations. Raises InvalidRequest, PoolConflict,
        or ModelUnavailable: then all serve as before."""
        ...

    def weigh(self, name: str, weights: Mapping[str, float]) -> None:
        """Other weights from now on."""
        ...

    def promote(self, name: str, revision: str | None) -> str:
        """Everything to one revision, whose name is returned."""
        ...

    def rollback(self, name: str) -> str:
        """Everything back to the revision that had it before, whose name is returned."""
        ...

    def view(self) -> list[dict[str, Any]]:
        """Every model that has revisions."""
        ...


AutoscaleMode = Literal["on", "off", "dry-run"]


@dataclass(frozen=True, slots=True)
class AutoscaleWish:
    """What of the autoscaler is to be different; None stays. Ranges are least and most workers."""

    mode: AutoscaleMode | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    goal: float | None = None
    prefill: tuple[int, int] | None = None
    decode: tuple[int, int] | None = None
    total: int | None = None
    idle_s: float | None = None


class AutoscaleControl(Protocol):
    """The autoscaler's settings as the edge sees them."""

    def settings(self) -> dict[str, Any]:
        """Mode, SLO and ranges in force."""
        ...

    def change(self, wish: AutoscaleWish) -> dict[str, Any]:
        """The settings from now on; InvalidRequest for what cannot be."""
        ...


class PoolControl(Protocol):
    """The sizes of the pools as the edge sees them. Every call sets a target and returns at once; its answer
    has `target`, the wanted workers of each role."""

    def scale(
        self, prefill: int | None = None, decode: int | None = None, store: int | None = None
    ) -> dict[str, Any]:
        """Start or drain workers to reach these numbers; None leaves a pool alone."""
        ...

    def drain(self, worker_id: str, within_s: float | None = None) -> dict[str, Any]:
        """Let a worker finish and leave, at the latest in that time; WorkerNotFound, PoolConflict."""
        ...

    def set_role(self, worker_id: str, role: Role) -> dict[str, Any]:
        """Move a worker to the other pool; WorkerNotFound, PoolConflict."""
        ...

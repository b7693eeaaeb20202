"""Control messages, one union a direction. Owns the wire types; sockets and decisions live elsewhere.

    coordinator → worker    CoordinatorMessage   Ping Welcome Refuse Prefill Decode Abort SetRole Fence Audit Drain Forget
    worker → coordinator    WorkerMessage        Hello Heartbeat Output TransferFailed AuditReply Goodbye
    launcher ↔ coordinator  LauncherMessage / LauncherOrder: `engine.api.launcher_messages`
    worker ↔ worker         PeerMessage          PeerHello PeerWelcome PeerRefuse Attach Announce Gone Renew Pulled
                                                 Lookup Found

Every message names the incarnation it speaks for (or to), and a request message its attempt: what
is stale is counted and dropped. Prompts are token ids; no text reaches a worker.
"""

from __future__ import annotations

import msgspec

from engine.api.fingerprint import Fingerprint
from engine.api.launcher_messages import LauncherGoodbye as LauncherGoodbye
from engine.api.launcher_messages import LauncherHello as LauncherHello
from engine.api.launcher_messages import LauncherWorker as LauncherWorker
from engine.api.launcher_messages import NodeLeaving as NodeLeaving
from engine.api.launcher_messages import RetireOrder as RetireOrder
from engine.api.launcher_messages import RoleOrder as RoleOrder
from engine.api.launcher_messages import ScaleOrder as ScaleOrder
from engine.api.launcher_messages import ScaleRefused as ScaleRefused
from engine.api.launcher_messages import StopOrder as StopOrder
from engine.api.launcher_messages import WorkerExited as WorkerExited
from engine.api.records import Message as Message
from engine.api.records import PeerAddress as PeerAddress
from engine.api.sampling import SampledToken, SamplingParams
from engine.api.worker_load import BlockCounts as BlockCounts
from engine.api.worker_load import WorkerLoad as WorkerLoad

# ---- coordinator → worker


class Order(Message, frozen=True, kw_only=True):
    """Root of what a coordinator says. `incarnation` is the addressed start of the worker; `seq`
    counts the orders to it, so that its heartbeat can say how far it has heard."""

    incarnation: str
    seq: int = 0


class Ping(Order, frozen=True, kw_only=True):
    """Nothing but its number: makes a lost order visible (see Heartbeat.heard)."""


class Welcome(Order, frozen=True, kw_only=True):
    """Registration accepted."""


class Refuse(Order, frozen=True, kw_only=True):
    """Registration refused; the worker exits with `reason`."""

    reason: str


class Prefill(Order, frozen=True, kw_only=True):
    """Compute a prompt, choose its first token, and offer the blocks to `decode_worker`.

    `token_ids` is prompt plus tokens already emitted (a replay); the first `num_prompt_tokens` of
    them are the client's prompt. `prefix_source` probably has the first `prefix_source_tokens`
    cached: what is not cached here may be read there instead of being computed.
    """

    request_id: str
    attempt: int
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    deadline_in_s: float
    cache_salt: str = ""
    decode_worker: str = ""
    prefix_source: PeerAddress | None = None
    prefix_source_tokens: int = 0


class Decode(Order, frozen=True, kw_only=True):
    """Continue a prompt to its end. Without `source` the worker computes the prompt itself, at most
    `chunk_tokens` of it in a step (0: no limit)."""

    request_id: str
    attempt: int
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    deadline_in_s: float
    cache_salt: str = ""
    source: PeerAddress | None = None
    chunk_tokens: int = 0


class Abort(Order, frozen=True, kw_only=True):
    """End a request here, whatever its phase; also ends its lease. Idempotent."""

    request_id: str
    attempt: int
    reason: str = ""


class SetRole(Order, frozen=True, kw_only=True):
    """Play another role from now on; nothing in flight is dropped."""

    role: str


class Fence(Order, frozen=True, kw_only=True):
    """The coordinator gave this incarnation up: drop every sequence, come back as a new one."""


class Drain(Order, frozen=True, kw_only=True):
    """Finish what is here, keep leases until they end, then say Goodbye and wait to be stopped."""


class Forget(Order, frozen=True, kw_only=True):
    """That worker left: close the roads to it and give up the mapping of its memory."""

    worker_id: str


class Audit(Order, frozen=True, kw_only=True):
    """Ask for the worker's full account of holds, leases, transfers, descriptors and tasks."""

    audit_id: int


# ---- worker → coordinator


class Hello(Message, frozen=True, kw_only=True):
    """A worker offers itself. `boot_id` and `pid` let a coordinator on the same host watch it. `draining`:
    another coordinator told it to drain, it takes no work. Of two starts that both live, the one of the higher
    `generation` is the worker."""

    worker_id: str
    incarnation: str
    role: str
    pid: int
    host: str
    boot_id: str
    fingerprint: Fingerprint
    address: PeerAddress
    num_blocks: int
    block_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    backend: str
    block_bytes: int = 0
    generation: int = 0
    served: list[str] = msgspec.field(default_factory=list)
    draining: bool = False


class Heartbeat(Message, frozen=True, kw_only=True):
    """Sent by a thread beside the engine loop. `step` must move while `busy`. `live` names the request
    attempts that are here, as of the moment when the order number `heard` had been obeyed.
    `identity` is the routing id of the worker's control socket."""

    incarnation: str
    identity: bytes
    step: int
    busy: bool
    load: WorkerLoad
    heard: int = 0
    live: list[tuple[str, int]] = msgspec.field(default_factory=list)


class Output(Message, frozen=True, kw_only=True):
    """Tokens of one request. `index` counts output tokens from 0 at the client's first token, so a
    repeated or reordered Output changes nothing. `finish_reason` is None while it goes on. `spans`
    are durations in seconds that ended with this output, never instants; `num_pulled_blocks` came
    from another worker since the output before."""

    incarnation: str
    request_id: str
    attempt: int
    index: int
    tokens: list[SampledToken]
    finish_reason: str | None = None
    stop_token_id: int | None = None
    error: str | None = None
    num_cached_tokens: int = 0
    num_pulled_blocks: int = 0
    spans: dict[str, float] = msgspec.field(default_factory=dict)


class Outputs(Message, frozen=True, kw_only=True):
    """All outputs of one step, in one frame."""

    incarnation: str
    outputs: list[Output]


class TransferFailed(Message, frozen=True, kw_only=True):
    """The decode side could not get proven KV; it has dropped the attempt and its blocks."""

    incarnation: str
    request_id: str
    attempt: int
    source: str
    reason: str


class HoldAccount(Message, frozen=True, kw_only=True):
    """One named hold of a pool."""

    owner: str
    blocks: int


class AuditReply(Message, frozen=True, kw_only=True):
    """A worker's conservation account; `balanced` when free + cached + held == total."""

    incarnation: str
    audit_id: int
    worker_id: str
    blocks: BlockCounts
    holds: list[HoldAccount]
    leases: int
    transfers: int
    sequences: int
    fds: int
    threads: int
    shm_bytes: int
    stale_releases: int
    balanced: bool


class RoleChanged(Message, frozen=True, kw_only=True):
    """The worker plays `role` now."""

    incarnation: str
    role: str


class Goodbye(Message, frozen=True, kw_only=True):
    """The worker has nothing left to do here and may be stopped; said again until it is."""

    incarnation: str
    reason: str
    worker_id: str = ""


# ---- worker ↔ worker


class PeerHello(Message, frozen=True, kw_only=True):
    """First message on a peer connection: who asks, and what its blocks mean."""

    worker_id: str
    incarnation: str
    fingerprint: Fingerprint
    reply_to: str


class PeerWelcome(Message, frozen=True, kw_only=True):
    """Layouts agree."""

    worker_id: str
    incarnation: str


class PeerRefuse(Message, frozen=True, kw_only=True):
    """Layouts differ; `field` names where."""

    worker_id: str
    incarnation: str
    field: str
    reason: str


class Attach(Message, frozen=True, kw_only=True):
    """Decode side → prefill side: send me the announcements of this request, from `first_block` on."""

    incarnation: str
    request_id: str
    attempt: int
    first_block: int


class BlockOffer(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One finished block: where it lies in the source pool, and what its bytes hash to."""

    block_id: int
    generation: int
    digest: bytes


class Announce(Message, frozen=True, kw_only=True):
    """Prefill side → decode side: blocks `first_block`… are finished and leased under `lease_id`.

    `last` comes with `first_token`, or with `finish_reason` when the request ended at its first
    token and nothing need be pulled.
    """

    incarnation: str
    request_id: str
    attempt: int
    lease_id: str
    first_block: int
    offers: list[BlockOffer]
    num_tokens: int
    last: bool = False
    first_token: SampledToken | None = None
    finish_reason: str | None = None


class Gone(Message, frozen=True, kw_only=True):
    """Prefill side → decode side: no such request here, or no longer."""

    incarnation: str
    request_id: str
    attempt: int
    reason: str


class Renew(Message, frozen=True, kw_only=True):
    """Decode side → prefill side: still interested; the lease runs anew."""

    incarnation: str
    request_id: str
    attempt: int


class Pulled(Message, frozen=True, kw_only=True):
    """Reader → source: everything is read (or no longer wanted); end the lease."""

    incarnation: str
    request_id: str
    attempt: int


class Lookup(Message, frozen=True, kw_only=True):
    """Reader → any worker: which of these content keys, from the first on, are in your prefix cache?
    They belong to blocks `first_block`… of the reader's prompt."""

    incarnation: str
    request_id: str
    attempt: int
    first_block: int
    keys: list[bytes]


class Found(Message, frozen=True, kw_only=True):
    """Answer to Lookup: cached blocks for the first of its keys, leased under `lease_id`; maybe none."""

    incarnation: str
    request_id: str
    attempt: int
    lease_id: str
    first_block: int
    offers: list[BlockOffer]


CoordinatorMessage = (
    Ping | Welcome | Refuse | Prefill | Decode | Abort | SetRole | Fence | Drain | Audit | Forget
)
WorkerMessage = (
    Hello
    | Heartbeat
    | Outputs
    | TransferFailed
    | AuditReply
    | RoleChanged
    | Goodbye
    | LauncherHello
    | LauncherGoodbye
    | NodeLeaving
    | WorkerExited
    | ScaleRefused
)
LauncherOrder = ScaleOrder | StopOrder | RetireOrder | RoleOrder
PeerMessage = (
    PeerHello
    | PeerWelcome
    | PeerRefuse
    | Attach
    | Announce
    | Gone
    | Renew
    | Pulled
    | Lookup
    | Found
)

"""What workers and launchers tell the coordinator. Owns a worker's wire types; a launcher's are `protocol.messages.launcher`.

    worker → coordinator    Hello Heartbeat Outputs TransferFailed AuditReply RoleChanged Goodbye BlocksChanged
                            SleepChanged

Every report names the incarnation it speaks for, and a request's report its attempt: what is stale is counted and dropped.
"""

from __future__ import annotations

import msgspec

from protocol.failures import Failure
from protocol.fingerprint import Fingerprint
from protocol.finish import FinishReason
from protocol.messages.launcher import (
    LauncherGoodbye,
    LauncherHello,
    NodeLeaving,
    ScaleRefused,
    WorkerExited,
)
from protocol.messages.records import Message, PeerAddress
from protocol.roles import Role
from protocol.sampling import SampledToken, ScoredToken
from protocol.sleeping import Part
from protocol.spans import Spans
from protocol.worker_load import BlockCounts, WorkerLoad


class Hello(Message, frozen=True, kw_only=True):
    """A worker offers itself. `boot_id` and `pid` let a coordinator on the same host watch it. `draining`:
    another coordinator told it to drain, it takes no work. `stopping`: its process was told to end by a signal, it
    takes no work and will be started again. Of two starts that both live, the one of the higher
    `generation` is the worker. `can_sleep`: it obeys Sleep. `lifeline_fd`: its `protocol.lifeline`, if it has one."""

    worker_id: str
    incarnation: str
    role: Role
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
    draining: bool = False
    stopping: bool = False
    can_sleep: bool = False
    lifeline_fd: int = -1


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


class PrefixRead(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What asking `source` for a run of a prompt's blocks brought: `read_blocks` of `asked_blocks`, `loaded_blocks` of which came from a disk
    there, `seconds` after the question."""

    source: str
    asked_blocks: int
    read_blocks: int
    loaded_blocks: int
    seconds: float


class Output(Message, frozen=True, kw_only=True):
    """Tokens of one request. `index` counts output tokens from 0 at the client's first token, so a
    repeated or reordered Output changes nothing. `prompt_scores` are of the prompt's tokens from `prompt_index` on, and
    come in order before the first token or with it. `embedding` is the prompt's, little-endian float32, with the finish
    reason; it has no unit length yet. `finish_reason` is None while it goes on. `spans`
    are durations in seconds that ended with this output, never instants; `num_pulled_blocks` came
    from another worker since the output before, and `reads` ended since then."""

    incarnation: str
    request_id: str
    attempt: int
    index: int
    tokens: list[SampledToken]
    prompt_index: int = 0
    prompt_scores: list[ScoredToken] = msgspec.field(default_factory=list)
    embedding: bytes = b""
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    error: Failure | None = None
    num_cached_tokens: int = 0
    num_pulled_blocks: int = 0
    spans: Spans = msgspec.field(default_factory=dict)
    reads: list[PrefixRead] = msgspec.field(default_factory=list)


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
    failure: Failure


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
    role: Role


class SleepChanged(Message, frozen=True, kw_only=True):
    """These parts of the worker's memory are away now; `failure`: why one of them could not be had again."""

    incarnation: str
    parts: list[Part]
    failure: str = ""


class Goodbye(Message, frozen=True, kw_only=True):
    """The worker has nothing left to do here and may be stopped; said again until it is. `stopping`: it ends by itself,
    and will be started again."""

    incarnation: str
    reason: str
    worker_id: str = ""
    stopping: bool = False


class BlocksChanged(Message, frozen=True, kw_only=True):
    """Content keys of blocks that are cached at a worker since, and of those that are no more; a key is in one of the
    lists of a tier at most. Messages of one start are numbered from 1: where a number is missing, ListBlocks makes it
    begin anew with one that `is_anew`, before which nothing counts. `given_up` are the first keys of runs that a store
    was ordered to keep and could not read."""

    incarnation: str
    number: int
    is_anew: bool = False
    stored: list[bytes] = msgspec.field(default_factory=list)
    evicted: list[bytes] = msgspec.field(default_factory=list)
    disk_stored: list[bytes] = msgspec.field(default_factory=list)
    disk_evicted: list[bytes] = msgspec.field(default_factory=list)
    given_up: list[bytes] = msgspec.field(default_factory=list)


WorkerMessage = (
    Hello
    | Heartbeat
    | Outputs
    | TransferFailed
    | AuditReply
    | RoleChanged
    | Goodbye
    | BlocksChanged
    | SleepChanged
    | LauncherHello
    | LauncherGoodbye
    | NodeLeaving
    | WorkerExited
    | ScaleRefused
)

"""What the coordinator tells a worker. Owns these wire types; what a worker makes of them is `worker.loop`.

    coordinator → worker    Ping Welcome Refuse Prefill Decode Abort SetRole Fence Audit Drain Forget Keep ListBlocks Sleep

Every order names the incarnation it speaks to, and a request's order its attempt: what is stale is counted
and dropped. Prompts are token ids; no text reaches a worker. An order's adapter is that of the request's admission, to its
end: a worker that does not have the content of that digest says so.
"""

from __future__ import annotations

import msgspec

from protocol.adapters import AdapterRef
from protocol.messages.records import Message, PeerAddress, PrefixRun
from protocol.roles import Role
from protocol.sampling import SamplingParams
from protocol.sleeping import Part


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
    them are the client's prompt. Of several prompts the one that is due first goes first; `due_in_s` may be in the past.
    What is not cached here is read from the sources of `prefix_runs`, which come in the prompt's order and each once, instead
    of being computed. Of a prompt that is scored `num_scored_tokens` need not be: they were told, as far as this attempt's beginning.
    """

    request_id: str
    attempt: int
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    deadline_in_s: float
    due_in_s: float = 0.0
    cache_salt: str = ""
    adapter: AdapterRef | None = None
    num_scored_tokens: int = 0
    decode_worker: str = ""
    prefix_runs: list[PrefixRun] = msgspec.field(default_factory=list)


class Decode(Order, frozen=True, kw_only=True):
    """Continue a prompt to its end. Without `source` the worker computes the prompt itself, in its turn by `due_in_s`,
    at most `chunk_tokens` of it in a step (0: no limit), and scores it. Then `prefix_runs` are as for Prefill: one of all
    of it where an answer is handed over by the worker that was writing it. `parked_at` keeps the request's blocks as they fill: a
    sequence that gave its blocks up for others reads them there. See Prefill for `num_scored_tokens`."""

    request_id: str
    attempt: int
    token_ids: list[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    deadline_in_s: float
    due_in_s: float = 0.0
    cache_salt: str = ""
    adapter: AdapterRef | None = None
    num_scored_tokens: int = 0
    source: PeerAddress | None = None
    chunk_tokens: int = 0
    prefix_runs: list[PrefixRun] = msgspec.field(default_factory=list)
    parked_at: PeerAddress | None = None


class Abort(Order, frozen=True, kw_only=True):
    """End a request here, whatever its phase; also ends its lease. Idempotent."""

    request_id: str
    attempt: int
    reason: str = ""


class SetRole(Order, frozen=True, kw_only=True):
    """Play another role from now on; nothing in flight is dropped."""

    role: Role


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


class Keep(Order, frozen=True, kw_only=True):
    """Read these blocks from `source`, which has them cached, and keep them: `keys` are a run of content keys, those of the
    blocks `first_block`… of some prompt or answer, which come after the block `parent`. Nobody waits for it."""

    source: PeerAddress
    first_block: int
    parent: bytes
    keys: list[bytes]


class ListBlocks(Order, frozen=True, kw_only=True):
    """Say which blocks are cached, all of them now and from then on what changes (see BlocksChanged)."""


class Sleep(Order, frozen=True, kw_only=True):
    """Give these parts of the memory back as soon as nothing is here, and take all others again at once; none: be awake.
    Answered with SleepChanged when it is so. Work that comes afterwards wakes the worker."""

    parts: list[Part] = msgspec.field(default_factory=list)


CoordinatorMessage = (
    Ping
    | Welcome
    | Refuse
    | Prefill
    | Decode
    | Abort
    | SetRole
    | Fence
    | Drain
    | Audit
    | Forget
    | Keep
    | ListBlocks
    | Sleep
)

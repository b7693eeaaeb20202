"""A worker loop with its real roles, alone: time is moved by hand, and what leaves or is to be read is noted."""

from __future__ import annotations

from typing import Any

from engine.attesting import SLOT_BYTES, AttestingRunner
from engine.context import WorkerContext
from engine.kv.pool_memory import KvMemory
from kvtransfer.heard import FromSource
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.pulling.pull import PullCounters, PullDone, PullJob
from protocol.errors import TransferError, WorkerLost
from protocol.fingerprint import Fingerprint
from protocol.messages.orders import Decode, Prefill
from protocol.messages.peers import Announce, BlockOffer, PeerMessage
from protocol.messages.records import Message, PeerAddress
from protocol.messages.reports import Hello
from protocol.roles import Role
from protocol.sampling import SampledToken, SamplingParams
from protocol.sleeping import Part
from worker.loop import Heard, Patience, WorkerLoop
from worker.outbox import Outbox
from worker.reports import Resources
from worker.roles import Limits, Machinery, build_roles

SIZE = 4
FINGERPRINT = Fingerprint(
    model="mock",
    weights="w",
    tokenizer="t",
    dtype="bytes",
    layout="l",
    block_size=SIZE,
    num_layers=1,
    num_kv_heads=1,
    head_dim=1,
    rope="none",
)
SOURCE = PeerAddress(worker_id="P", incarnation="p1", host="h", control="", transports={})
KEY = ("r", 1)


class Rests:
    """Memory that goes and comes, but for what is `lost`."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.lost = ""

    def give_back(self, part: Part) -> None:
        self.calls.append(f"-{part}")

    def take_again(self, part: Part) -> None:
        if self.lost:
            raise WorkerLost(self.lost)
        self.calls.append(f"+{part}")


class LoneWorker:
    """Satisfies Lines, Surroundings, Pulls, Clock and Ids of its loop."""

    def __init__(self, num_blocks: int = 8, silence_limit_s: float | None = None) -> None:
        self.at_s = 100.0
        self.identity, self.coordinator = b"w/1", "ipc://coordinator"
        self.said: list[Any] = []
        self.replies: list[PeerMessage] = []
        self.asked: list[PeerMessage] = []
        self.jobs: list[PullJob] = []
        self.forgotten: list[str] = []
        self.starts = 0
        self._named = 0
        self.context = WorkerContext("W", "w1", FINGERPRINT.hash_bytes(), self, self, 30.0)
        outbox, leases = Outbox(self, self.context), LeaseTable(self)
        memory = KvMemory(num_blocks, SIZE * SLOT_BYTES)
        limits = Limits(num_blocks, SIZE, max_num_batched_tokens=16, max_num_seqs=4)
        self.resting = Rests()
        machinery = Machinery(memory, AttestingRunner(memory, SIZE), self, resting=self.resting)
        self.roles = build_roles(limits, machinery, leases, outbox, self.context)
        self.loop = WorkerLoop(
            self._card(num_blocks),
            self.roles,
            outbox,
            self,
            self.context,
            Patience(silence_limit_s),
        )

    def _card(self, num_blocks: int) -> Hello:
        return Hello(
            worker_id="W",
            incarnation="w1",
            role=Role.DECODE,
            pid=1,
            host="h",
            boot_id="b",
            fingerprint=FINGERPRINT,
            address=self.address(),
            num_blocks=num_blocks,
            block_size=SIZE,
            max_model_len=64,
            max_num_seqs=4,
            max_num_batched_tokens=16,
            backend="attesting",
        )

    # ---- what it is driven with

    def turn(self, *heard: Heard, after_s: float = 0.0) -> list[Any]:
        """One turn `after_s` later; what it said in it."""
        self.at_s += after_s
        before = len(self.said)
        self.loop.turn(heard)
        return self.said[before:]

    def names(self, *heard: Heard, after_s: float = 0.0) -> list[str]:
        """Kinds of what one turn said."""
        return [type(message).__name__ for message in self.turn(*heard, after_s=after_s)]

    @property
    def held(self) -> int:
        """Blocks in use."""
        return self.roles.pool.counts().held

    def ended(self, error: TransferError | None = None) -> PullDone:
        """The oldest read ends."""
        return PullDone(self.jobs.pop(0), error)

    # ---- Clock, Ids

    def now_s(self) -> float:
        return self.at_s

    def new_incarnation(self) -> str:
        self._named += 1
        return f"w{self._named + 1}"

    def new_lease_id(self) -> str:
        self._named += 1
        return f"lease{self._named}"

    # ---- Lines

    def tell(self, message: Message) -> None:
        self.said.append(message)

    def reply(self, identity: bytes, message: PeerMessage) -> bool:
        self.replies.append(message)
        return True

    def ask(self, source: PeerAddress, message: PeerMessage) -> None:
        self.asked.append(message)

    # ---- Pulls

    def submit(self, job: PullJob) -> None:
        self.jobs.append(job)

    def cancel(self, key: tuple[str, int]) -> None:
        """The read goes on to its end."""

    # ---- Surroundings

    def address(self) -> PeerAddress:
        start = self.context.incarnation
        return PeerAddress(worker_id="W", incarnation=start, host="h", control="", transports={})

    def start_over(self) -> None:
        self.starts += 1
        self.jobs.clear()

    def forget_peer(self, worker_id: str) -> None:
        self.forgotten.append(worker_id)

    def resources(self) -> Resources:
        return Resources(fds=7, threads=3, shm_bytes=4096)

    def pull_counters(self) -> PullCounters:
        return PullCounters(transfers=5)

    def dropped_messages(self) -> int:
        return 2


# ---- what it hears


def prefill_order(num_tokens: int = 6, deadline_in_s: float = 60.0, seq: int = 0) -> Prefill:
    return Prefill(
        incarnation="w1",
        request_id="r",
        attempt=1,
        token_ids=list(range(num_tokens)),
        num_prompt_tokens=num_tokens,
        sampling=SamplingParams(max_tokens=4),
        deadline_in_s=deadline_in_s,
        seq=seq,
    )


def decode_order(
    source: PeerAddress | None = SOURCE, deadline_in_s: float = 60.0, seq: int = 0
) -> Decode:
    return Decode(
        incarnation="w1",
        request_id="r",
        attempt=1,
        token_ids=list(range(6)),
        num_prompt_tokens=6,
        sampling=SamplingParams(max_tokens=4),
        deadline_in_s=deadline_in_s,
        source=source,
        seq=seq,
    )


def announced(num_blocks: int = 1, *, last: bool = False) -> FromSource:
    offers = [BlockOffer(block_id=i, generation=1, digest=b"") for i in range(num_blocks)]
    message = Announce(
        incarnation="p1",
        request_id="r",
        attempt=1,
        lease_id="l",
        first_block=0,
        offers=offers,
        num_tokens=6 if last else 4 * num_blocks,
        last=last,
        first_token=SampledToken(token_id=9) if last else None,
    )
    return FromSource(("P", "p1"), message)

"""What every worker has been promised. Owns reservations of blocks and of prefill work; pure.

A request reserves its prompt plus a headroom of output on its decode worker before anything is
computed; what it writes beyond the headroom is added as it comes, and a worker that then runs short
preempts. On its prefill worker it reserves the prompt until the decode side has taken it over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADROOM_TOKENS = 256


class Queued(NamedTuple):
    """Prompts, and what they cost as tokens of the mean prompt."""

    prompts: int
    work_tokens: int


class _Sum:
    """Amounts by request, and their sum, which every choice of a route asks of every worker."""

    __slots__ = ("_amounts", "total")

    def __init__(self) -> None:
        self._amounts: dict[str, int] = {}
        self.total = 0

    def __len__(self) -> int:
        return len(self._amounts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._amounts)

    def __setitem__(self, request_id: str, amount: int) -> None:
        self.total += amount - self._amounts.get(request_id, 0)
        self._amounts[request_id] = amount

    def drop(self, request_id: str) -> bool:
        """Whether it was there."""
        amount = self._amounts.pop(request_id, None)
        self.total -= amount or 0
        return amount is not None


class _Prompts:
    """Prompts to be computed: what each costs, and when it is due."""

    __slots__ = ("_prompts", "total")

    def __init__(self) -> None:
        self._prompts: dict[str, tuple[float, int]] = {}
        self.total = 0

    def __len__(self) -> int:
        return len(self._prompts)

    def add(self, request_id: str, due_s: float, work_tokens: int) -> None:
        """A second time changes it."""
        self.drop(request_id)
        self._prompts[request_id] = (due_s, work_tokens)
        self.total += work_tokens

    def drop(self, request_id: str) -> bool:
        """Whether it was there."""
        prompt = self._prompts.pop(request_id, None)
        self.total -= prompt[1] if prompt else 0
        return prompt is not None

    def before(self, due_s: float) -> Queued:
        """What is computed before a prompt that is due then."""
        work = [work for due, work in self._prompts.values() if due <= due_s]
        return Queued(len(work), sum(work))


@dataclass(slots=True)
class _Account:
    capacity_blocks: int
    capacity_sequences: int
    decode_blocks: _Sum = field(default_factory=_Sum)
    prefill_blocks: _Sum = field(default_factory=_Sum)
    prompts: _Prompts = field(default_factory=_Prompts)

    @property
    def used_blocks(self) -> int:
        return self.decode_blocks.total + self.prefill_blocks.total


class Ledger:
    """One account a worker; a request has at most one reservation of each kind on each."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._accounts: dict[str, _Account] = {}

    def open(self, worker_id: str, capacity_blocks: int, capacity_sequences: int) -> None:
        """Start a worker's account, empty."""
        self._accounts[worker_id] = _Account(capacity_blocks, capacity_sequences)

    def close(self, worker_id: str) -> None:
        """The worker is gone, and with it everything reserved there."""
        self._accounts.pop(worker_id, None)

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks for `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def decode_need(self, num_tokens: int, max_new_tokens: int) -> int:
        """Blocks that a request reserves on its decode worker."""
        return self.num_blocks(num_tokens + min(max_new_tokens, HEADROOM_TOKENS))

    def fits_decode(self, worker_id: str, blocks: int) -> bool:
        """Whether the worker can take one more sequence of that size."""
        account = self._accounts[worker_id]
        return (
            account.used_blocks + blocks <= account.capacity_blocks
            and len(account.decode_blocks) < account.capacity_sequences
        )

    def fits_prefill(self, worker_id: str, blocks: int) -> bool:
        """Whether the worker can hold one more prompt of that size until it is pulled."""
        account = self._accounts[worker_id]
        return account.used_blocks + blocks <= account.capacity_blocks

    def reserve_decode(self, worker_id: str, request_id: str, blocks: int) -> None:
        """Promise blocks on a decode worker; a second call changes the amount."""
        if (account := self._accounts.get(worker_id)) is not None:
            account.decode_blocks[request_id] = blocks

    def reserve_prefill(self, worker_id: str, request_id: str, tokens: int) -> None:
        """Promise a prompt's blocks on a prefill worker."""
        if (account := self._accounts.get(worker_id)) is not None:
            account.prefill_blocks[request_id] = self.num_blocks(tokens)

    def reserve_computing(
        self, worker_id: str, request_id: str, work_tokens: int, due_s: float
    ) -> None:
        """Promise a prompt's computing, on a worker of either role."""
        if (account := self._accounts.get(worker_id)) is not None:
            account.prompts.add(request_id, due_s, work_tokens)

    def prefill_computed(self, worker_id: str, request_id: str) -> bool:
        """The prompt is computed; its blocks stay reserved until they are taken over. False when it was already."""
        account = self._accounts.get(worker_id)
        return account is not None and account.prompts.drop(request_id)

    def release_prefill(self, worker_id: str, request_id: str) -> None:
        """The prompt's blocks were taken over, or are not wanted."""
        if (account := self._accounts.get(worker_id)) is not None:
            account.prompts.drop(request_id)
            account.prefill_blocks.drop(request_id)

    def release_decode(self, worker_id: str, request_id: str) -> None:
        """The request is over on its decode worker."""
        if (account := self._accounts.get(worker_id)) is not None:
            account.decode_blocks.drop(request_id)
            account.prompts.drop(request_id)

    def queued_prefill_tokens(self, worker_id: str) -> int:
        """Work sent to the worker and not yet done, as tokens of the mean prompt."""
        return self._accounts[worker_id].prompts.total

    def queued_before(self, worker_id: str, due_s: float) -> Queued:
        """Prompts sent to the worker and not yet computed that it computes before one that is due then."""
        return self._accounts[worker_id].prompts.before(due_s)

    def free_blocks(self, worker_id: str) -> int:
        """Blocks that are promised to nobody."""
        account = self._accounts[worker_id]
        return max(account.capacity_blocks - account.used_blocks, 0)

    def decode_share(self, worker_id: str) -> float:
        """Share of the worker's blocks that is promised, 0 to 1 and beyond."""
        account = self._accounts[worker_id]
        return account.used_blocks / max(account.capacity_blocks, 1)

    def request_ids(self, worker_id: str) -> list[str]:
        """Requests that have blocks there, for either leg; always in the same order."""
        account = self._accounts[worker_id]
        return list(dict.fromkeys((*account.decode_blocks, *account.prefill_blocks)))

    def capacity_blocks(self) -> int:
        """Blocks of the largest pool and, with it, of the longest request."""
        return max((a.capacity_blocks for a in self._accounts.values()), default=0)

    def num_reservations(self) -> int:
        """Reservations of any kind, everywhere: zero when nothing is live."""
        return sum(len(a.decode_blocks) + len(a.prefill_blocks) for a in self._accounts.values())

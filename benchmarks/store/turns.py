"""What is asked of a store in a replay: conversations that grow, or a trace in Mooncake's form, scaled. Owns the prompts; pure.

a conversation   shared beginning · its own · then each turn: what was answered, and something new
a trace          each block id stands for the same few tokens wherever it comes: equal beginnings stay equal
"""

from __future__ import annotations

import random
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LOWEST_ID, HIGHEST_ID = 1000, 40_000
"""Token ids of any vocabulary that a chat model has; none of them is special."""


@dataclass(frozen=True)
class Turn:
    """One request: what follows the history of its conversation."""

    chat: int
    new: tuple[int, ...]


def tokens_of(seed: str, count: int) -> tuple[int, ...]:
    """The same for the same seed."""
    chance = random.Random(seed)
    return tuple(chance.randrange(LOWEST_ID, HIGHEST_ID) for _ in range(count))


def conversations(chats: int, turns: int, shared_tokens: int, new_tokens: int) -> list[Turn]:
    """All chats in turn: between two turns of one, each of the others has one."""
    begin = tokens_of("shared", shared_tokens)
    return [
        Turn(chat, (begin if turn == 0 else ()) + tokens_of(f"{chat} {turn}", new_tokens))
        for turn in range(turns)
        for chat in range(chats)
    ]


def scaled_trace(requests: Sequence[Sequence[int]], id_tokens: int, longest: int) -> list[Turn]:
    """Each request by itself, cut to `longest` tokens."""
    return [
        Turn(number, tuple(t for one in ids for t in tokens_of(f"id {one}", id_tokens))[:longest])
        for number, ids in enumerate(requests)
    ]


class Histories:
    """What each conversation has said so far, which is what its next prompt begins with."""

    def __init__(self) -> None:
        self._said: dict[int, list[int]] = {}

    def prompt(self, turn: Turn) -> list[int]:
        """The whole prompt of a turn."""
        return [*self._said.get(turn.chat, ()), *turn.new]

    def answered(self, turn: Turn, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """It goes on from there."""
        self._said[turn.chat] = [*prompt, *answer]


class IdealCache:
    """A plain LRU of so many blocks that costs nothing and is never late: beginnings of prompts, and of answers."""

    def __init__(self, capacity_blocks: int, block_size: int) -> None:
        self._capacity = capacity_blocks
        self._block_size = block_size
        self._held: OrderedDict[int, None] = OrderedDict()

    def _keys(self, token_ids: Sequence[int]) -> Iterator[int]:
        key = 0
        for end in range(self._block_size, len(token_ids) + 1, self._block_size):
            key = hash((key, *token_ids[end - self._block_size : end]))
            yield key

    def asked(self, prompt: Sequence[int]) -> int:
        """How many of its tokens are there; the last one is always computed."""
        found = 0
        for key in self._keys(prompt[:-1]):
            if key not in self._held:
                break
            found += 1
        return found * self._block_size

    def used(self, token_ids: Sequence[int]) -> None:
        """Prompt and answer: the end goes before the beginning."""
        for key in reversed(list(self._keys(token_ids[:-1]))):
            self._held[key] = None
            self._held.move_to_end(key)
            if len(self._held) > self._capacity:
                self._held.popitem(last=False)

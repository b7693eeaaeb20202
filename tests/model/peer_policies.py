"""Policies that peers ship, in a model small enough to read. Owns no production code: a second, independent view.

Three requests of one block each; a source with two blocks (pull) and a destination with two.
Push: the source writes into the destination whenever it likes, and may die; its "done" may be lost.
Pull: the destination reads in two halves; the source may end the promise, reuse the block, or die.

    unsafe   a request is decoded from bytes that are not all its own
    leak     nothing can happen any more, the destination still holds a block
    stuck    every request is over, and a living source holds a block for ever
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

REQUESTS, BLOCKS = 3, 2
NOBODY = -1
Owners = tuple[int, ...]
State = TypeVar("State", "Push", "Pull")


@dataclass(frozen=True)
class Verdict:
    """What exhaustive search says of a policy."""

    states: int
    is_unsafe: bool
    leaks: bool
    is_stuck: bool

    @property
    def is_clean(self) -> bool:
        return not (self.is_unsafe or self.leaks or self.is_stuck)


@dataclass(frozen=True)
class Push:
    """`phase` of each request: new, waiting, aborted, decoding, over."""

    phase: tuple[str, ...] = ("new",) * REQUESTS
    block: Owners = (NOBODY,) * REQUESTS
    owner: Owners = (NOBODY,) * BLOCKS
    content: Owners = (NOBODY,) * BLOCKS
    writes: frozenset[tuple[int, int]] = frozenset()
    done: frozenset[int] = frozenset()
    source_lives: bool = True

    def moved(self, request: int, phase: str) -> Push:
        return replace(self, phase=_put(self.phase, request, phase))

    def freed(self, request: int) -> Push:
        block = self.block[request]
        over = self.moved(request, "over")
        return replace(over, owner=_put(self.owner, block, NOBODY))

    def is_wrong(self) -> bool:
        return any(
            phase == "decoding" and self.content[self.block[request]] != request
            for request, phase in enumerate(self.phase)
        )


@dataclass(frozen=True)
class Pull:
    """`phase`: new, offered, half, read, decoding, over. `got` is whose halves lie in each destination."""

    phase: tuple[str, ...] = ("new",) * REQUESTS
    source_block: Owners = (NOBODY,) * REQUESTS
    target: Owners = (NOBODY,) * REQUESTS
    source_owner: Owners = (NOBODY,) * BLOCKS
    source_content: Owners = (NOBODY,) * BLOCKS
    owner: Owners = (NOBODY,) * BLOCKS
    got: tuple[tuple[int, int], ...] = ((NOBODY, NOBODY),) * BLOCKS
    source_lives: bool = True

    def moved(self, request: int, phase: str) -> Pull:
        return replace(self, phase=_put(self.phase, request, phase))

    def freed(self, request: int) -> Pull:
        over = self.moved(request, "over")
        return replace(over, owner=_put(self.owner, self.target[request], NOBODY))

    def released(self, request: int) -> Pull:
        block = self.source_block[request]
        if self.source_owner[block] != request:
            return self
        return replace(self, source_owner=_put(self.source_owner, block, NOBODY))

    def is_wrong(self) -> bool:
        return any(
            phase == "decoding" and self.got[self.target[request]] != (request, request)
            for request, phase in enumerate(self.phase)
        )


def push(*, on_abort: str) -> Verdict:
    """`on_abort`: "free" at once, "hold" until done, or "timeout": hold, then free."""

    def moves(state: Push) -> Iterator[Push]:
        for request, phase in enumerate(state.phase):
            if phase == "new":
                yield from _push_starts(state, request)
            elif phase == "waiting":
                if request in state.done:
                    yield state.moved(request, "decoding")
                if not state.source_lives and on_abort != "hold":
                    yield state.freed(request)
                aborted = state.moved(request, "aborted")
                yield state.freed(request) if on_abort == "free" else aborted
            elif phase == "aborted":
                if request in state.done or on_abort == "timeout":
                    yield state.freed(request)
            elif phase == "decoding":
                yield state.freed(request)
        yield from _push_network(state)

    return _search(Push(), moves, lambda state: any(o != NOBODY for o in state.owner), _never)


def _push_starts(state: Push, request: int) -> Iterator[Push]:
    if NOBODY in state.owner:
        block = state.owner.index(NOBODY)
        writes = state.writes | {(request, block)} if state.source_lives else state.writes
        yield replace(
            state.moved(request, "waiting"),
            block=_put(state.block, request, block),
            owner=_put(state.owner, block, request),
            writes=writes,
        )


def _push_network(state: Push) -> Iterator[Push]:
    for write in state.writes:
        request, block = write
        rest = replace(state, writes=state.writes - {write})
        landed = replace(rest, content=_put(state.content, block, request))
        yield replace(landed, done=state.done | {request})
        yield landed  # its "done" is lost
        if not state.source_lives:
            yield rest
    if state.source_lives:
        yield replace(state, source_lives=False)


def pull(*, digest: bool, lease: bool) -> Verdict:
    """Baton's policy is both: a promise that ends by itself, and bytes proven after the read."""

    def moves(state: Pull) -> Iterator[Pull]:
        for request, phase in enumerate(state.phase):
            yield from _pull_request(state, request, phase, digest=digest)
        if state.source_lives:
            nobody = (NOBODY,) * BLOCKS
            yield replace(state, source_lives=False, source_owner=nobody)
        if lease:
            for block, owner in enumerate(state.source_owner):
                if owner != NOBODY:
                    yield replace(state, source_owner=_put(state.source_owner, block, NOBODY))

    def is_stuck(state: Pull) -> bool:
        is_over = all(phase == "over" for phase in state.phase)
        return not lease and state.source_lives and is_over and set(state.source_owner) != {NOBODY}

    return _search(Pull(), moves, lambda state: any(o != NOBODY for o in state.owner), is_stuck)


def _pull_request(state: Pull, request: int, phase: str, *, digest: bool) -> Iterator[Pull]:
    if phase == "new":
        yield state.moved(request, "over")
        if state.source_lives and NOBODY in state.source_owner:
            block = state.source_owner.index(NOBODY)
            yield replace(
                state.moved(request, "offered"),
                source_block=_put(state.source_block, request, block),
                source_owner=_put(state.source_owner, block, request),
                source_content=_put(state.source_content, block, request),
            )
    elif phase == "offered":
        yield state.moved(request, "over")  # aborted, and the source is never told
        if NOBODY in state.owner:
            target = state.owner.index(NOBODY)
            yield replace(
                state.moved(request, "reading"),
                target=_put(state.target, request, target),
                owner=_put(state.owner, target, request),
                got=_put(state.got, target, (NOBODY, NOBODY)),
            )
    elif phase in ("reading", "half"):
        yield _read_half(state, request, phase) if state.source_lives else state.freed(request)
    elif phase == "read":
        is_proven = state.got[state.target[request]] == (request, request)
        yield state.freed(request).released(request)  # aborted, or not proven: computed again
        if is_proven or not digest:
            yield state.moved(request, "decoding").released(request)
    elif phase == "decoding":
        yield state.freed(request)


def _read_half(state: Pull, request: int, phase: str) -> Pull:
    target = state.target[request]
    content = state.source_content[state.source_block[request]]
    got = (content, NOBODY) if phase == "reading" else (state.got[target][0], content)
    following = "half" if phase == "reading" else "read"
    return replace(state.moved(request, following), got=_put(state.got, target, got))


def _put(values: tuple, index: int, value: object) -> tuple:
    return (*values[:index], value, *values[index + 1 :])


def _never(_: Push) -> bool:
    return False


def _search(
    first: State,
    moves: Callable[[State], Iterator[State]],
    holds: Callable[[State], bool],
    is_stuck: Callable[[State], bool],
) -> Verdict:
    """Every reachable state, once."""
    seen, frontier = {first}, [first]
    unsafe = leaks = stuck = False
    while frontier:
        state = frontier.pop()
        unsafe = unsafe or state.is_wrong()
        stuck = stuck or is_stuck(state)
        following = {after for after in moves(state) if after != state}
        leaks = leaks or (not following and holds(state))
        new = following - seen
        seen |= new
        frontier += new
    return Verdict(len(seen), unsafe, leaks, stuck)

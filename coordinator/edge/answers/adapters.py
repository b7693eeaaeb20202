"""Adapters that requests may name. Owns which content each name means now; a request keeps the one it was admitted with.

load ─► prepared: checked, and kept by its digest ─► name ─► digest ─► every request from now on
unload, load again ─► the digest is nobody's name ─► its copy goes once no live request has it, and some time has passed
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from protocol.adapters import AdapterRef
from protocol.clock import wall_time_s
from protocol.errors import ConfigError, InvalidRequest, ModelNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from protocol.clock import Clock

MAX_NAME_CHARACTERS = 256
KEEP_S = 60.0
"""A request may have been given a digest, and not be live yet."""


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """What a name means. `path` is where it was read, `created` when, in seconds since the epoch."""

    ref: AdapterRef
    path: str
    created: int


class KeptContents:
    """Where contents are kept. `prepare` checks what a path holds, keeps it, and says its digest, or raises ConfigError;
    `forget` lets one go; `in_use` has the digests of live requests."""

    def __init__(
        self,
        prepare: Callable[[str], str],
        forget: Callable[[str], None],
        in_use: Callable[[], Collection[str]],
    ) -> None:
        self.prepare, self.forget, self.in_use = prepare, forget, in_use


class AdapterBook:
    """Invariant: the content of every name is kept, and so is that of every live request."""

    def __init__(self, contents: KeptContents, clock: Clock, taken: Iterable[str]) -> None:
        """`taken` are names that no adapter can have."""
        self._contents, self._clock, self._taken = contents, clock, frozenset(taken)
        self._named: dict[str, NamedAdapter] = {}
        self._left: dict[str, float] = {}
        self._turn = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._named)

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which they came."""
        return tuple(self._named)

    def find(self, name: str) -> NamedAdapter | None:
        """What the name means now."""
        return self._named.get(name)

    def load_now(self, name: str, path: str) -> None:
        """Before anything is served; raises ConfigError."""
        try:
            self._check_name(name, is_replaced=False)
        except InvalidRequest as error:
            raise ConfigError(str(error)) from error
        self._name(name, path, self._contents.prepare(path))

    async def load(self, name: str, path: str, *, in_place: bool = False) -> None:
        """Read an adapter under a name; with `in_place` it may have the name of one that is loaded. Raises InvalidRequest
        for what cannot be served: then everything is as it was."""
        async with self._turn:
            self._check_name(name, is_replaced=in_place)
            try:
                digest = await asyncio.to_thread(self._contents.prepare, path)
            except ConfigError as error:
                raise InvalidRequest(str(error), "lora_path") from error
            self._name(name, path, digest)
            self._sweep()

    async def unload(self, name: str) -> None:
        """The name means nothing from now on; what has been admitted goes on."""
        async with self._turn:
            known = self._named.pop(name, None)
            if known is None:
                raise ModelNotFound(f"the lora adapter {name!r} cannot be found", "lora_name")
            self._leave(known.ref.digest)
            self._sweep()

    def _check_name(self, name: str, *, is_replaced: bool) -> None:
        if not name.strip() or not name.isprintable() or len(name) > MAX_NAME_CHARACTERS:
            told = f"lora_name must be a text of 1 to {MAX_NAME_CHARACTERS} printable characters"
            raise InvalidRequest(told, "lora_name")
        if name in self._taken:
            told = f"a model, or a group of deployments, is served under the name {name!r}"
            raise InvalidRequest(told, "lora_name")
        if name in self._named and not is_replaced:
            told = (
                f"the lora adapter {name!r} has already been loaded; load_inplace true replaces it"
            )
            raise InvalidRequest(told, "lora_name")

    def _name(self, name: str, path: str, digest: str) -> None:
        known = self._named.get(name)
        self._named[name] = NamedAdapter(AdapterRef(name, digest), path, int(wall_time_s()))
        self._left.pop(digest, None)
        if known is not None:
            self._leave(known.ref.digest)

    def _leave(self, digest: str) -> None:
        if all(named.ref.digest != digest for named in self._named.values()):
            self._left[digest] = self._clock.now_s()

    def _sweep(self) -> None:
        """Let go of contents that nobody can need any more."""
        until_s, in_use = self._clock.now_s() - KEEP_S, self._contents.in_use()
        for digest, since_s in list(self._left.items()):
            if since_s <= until_s and digest not in in_use:
                del self._left[digest]
                self._contents.forget(digest)

"""Adapters that requests may name. Owns which model's, and which content, each name means now; a request keeps the one it was admitted with.

load ─► prepared: checked, and kept by its digest ─► name ─► digest ─► every request from now on
unload, load again ─► the digest is nobody's name ─► its copy goes once no live request has it, and some time has passed
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protocol.adapters import AdapterRef
from protocol.clock import wall_time_s
from protocol.errors import ConfigError, InvalidRequest, ModelNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from protocol.clock import Clock

MAX_NAME_CHARACTERS = 256
KEEP_S = 60.0
"""A request may have been given a digest, and not be live yet."""


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """What a name means, for the model that answers call `model`. `path` is where it was read, `created` when, in seconds
    since the epoch."""

    ref: AdapterRef
    path: str
    created: int
    model: str


class KeptContents:
    """Where one model's contents are kept. `prepare` checks what a path holds, keeps it, and says its digest, or raises
    ConfigError; `forget` lets one go; `in_use` has the digests of live requests."""

    def __init__(
        self,
        prepare: Callable[[str], str],
        forget: Callable[[str], None],
        in_use: Callable[[], Collection[str]],
    ) -> None:
        self.prepare, self.forget, self.in_use = prepare, forget, in_use


class AdapterBook:
    """Invariant: the content of every name is kept, and so is that of every live request."""

    def __init__(
        self,
        contents: Mapping[str, KeptContents],
        clock: Clock,
        names: Mapping[str, str],
        keep_s: float = KEEP_S,
        taken: Iterable[str] = (),
    ) -> None:
        """`contents` by the names of the models that have adapters; `names` says what answers call a model of each served name.
        No adapter can have one of these, nor one that is `taken`. `keep_s`: so long after its digest was given to it a request is live, or over."""
        self._contents, self._clock, self._names = contents, clock, names
        self._keep_s = keep_s
        self._taken = frozenset({*names, *taken})
        self._named: dict[str, NamedAdapter] = {}
        self._left: dict[tuple[str, str], float] = {}
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

    def load_now(self, name: str, path: str, model: str) -> None:
        """Before anything is served; raises ConfigError."""
        try:
            self._check_name(name, is_replaced=False)
        except InvalidRequest as error:
            raise ConfigError(str(error)) from error
        self._name(name, path, model, self._contents[model].prepare(path))

    async def load(
        self, name: str, path: str, base: str | None = None, *, in_place: bool = False
    ) -> None:
        """Read an adapter of the model `base` under a name; with `in_place` it may have the name of one that is loaded. Raises
        InvalidRequest for what cannot be served: then everything is as it was."""
        async with self._turn:
            self._check_name(name, is_replaced=in_place)
            model = self._base(name, base)
            try:
                digest = await asyncio.to_thread(self._contents[model].prepare, path)
            except ConfigError as error:
                raise InvalidRequest(str(error), "lora_path") from error
            self._name(name, path, model, digest)
            self._sweep()

    def _base(self, name: str, base: str | None) -> str:
        """Whose adapter it is: as was said, or as that of the same name was, or the only one's."""
        known, here = self._named.get(name), ", ".join(self._contents)
        if base is None and known is not None:
            return known.model
        if base is None and len(self._contents) > 1:
            told = f"several models have adapters; say whose it is: {here}"
            raise InvalidRequest(told, "base_model_name")
        if base is None:
            return next(iter(self._contents))
        model = self._names.get(base)
        if model is None or model not in self._contents:
            raise InvalidRequest(f"no model {base!r} has adapters; {here} does", "base_model_name")
        return model

    async def unload(self, name: str) -> None:
        """The name means nothing from now on; what has been admitted goes on."""
        async with self._turn:
            known = self._named.pop(name, None)
            if known is None:
                raise ModelNotFound(f"the lora adapter {name!r} cannot be found", "lora_name")
            self._leave(known)
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

    def _name(self, name: str, path: str, model: str, digest: str) -> None:
        known = self._named.get(name)
        ref = AdapterRef(name, digest)
        self._named[name] = NamedAdapter(ref, path, int(wall_time_s()), model)
        self._left.pop((model, digest), None)
        if known is not None:
            self._leave(known)

    def _leave(self, known: NamedAdapter) -> None:
        content = known.model, known.ref.digest
        if all((named.model, named.ref.digest) != content for named in self._named.values()):
            self._left[content] = self._clock.now_s()

    def _sweep(self) -> None:
        """Let go of contents that nobody can need any more."""
        until_s = self._clock.now_s() - self._keep_s
        for content, since_s in list(self._left.items()):
            model, digest = content
            if since_s <= until_s and digest not in self._contents[model].in_use():
                del self._left[content]
                self._contents[model].forget(digest)

    def view(self, workers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """For operators: how many names there are, and those whose content is in some worker's memory, with who has it."""
        holders: dict[str, list[str]] = {}
        for worker in workers:
            for digest in worker.get("adapters", ()):
                holders.setdefault(digest, []).append(worker["id"])
        resident = [
            {
                "name": name,
                "model": named.model,
                "path": named.path,
                "digest": named.ref.digest,
                "workers": holders[named.ref.digest],
            }
            for name, named in self._named.items()
            if named.ref.digest in holders
        ]
        return {"registered": len(self._named), "resident": resident}

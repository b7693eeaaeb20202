"""Which adapter computes a request. Owns its wire form, and what others than an engine know of its content (engine.adapters)."""

from __future__ import annotations

from typing import Protocol

import msgspec

DIGEST_CHARACTERS = 64


class AdapterRef(msgspec.Struct, frozen=True, array_like=True):
    """An adapter as a request was admitted with it: `digest`, in hexadecimal, is that of its content and decides what is
    computed and which cached blocks may be used; `name` is for people."""

    name: str
    digest: str


class HeldAdapter(Protocol):
    """An adapter's content, as long as a sequence needs it; only an engine looks into it."""

    @property
    def digest(self) -> str:
        """Of the content, in hexadecimal."""
        ...


class AdapterSource(Protocol):
    """Where a worker finds adapters."""

    @property
    def digests(self) -> tuple[str, ...]:
        """Of those in memory; any thread may ask."""
        ...

    def hold(self, ref: AdapterRef) -> HeldAdapter:
        """The content of that digest; ConfigError where there is none that this engine computes."""
        ...

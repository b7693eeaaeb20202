"""The keys of one cluster. Owns the structs that carry them in spec files; sockets are protocol.channels.

A launcher makes three CurveZMQ key pairs at its start, and gives each process its own pair and the
others' public keys. Workers share a pair: they trust each other, and none can pass for the coordinator.
Keys live in spec files (mode 0600, in a directory of mode 0700), never in arguments or environments.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import zmq

Key = Annotated[str, msgspec.Meta(min_length=40, max_length=40)]
"""A 256-bit key as Z85 text."""
Channel = Literal["control", "peers"]
"""Who listens: the coordinator, or a worker (peer messages and KV blocks)."""


class KeyPair(msgspec.Struct, frozen=True, kw_only=True):
    """One identity. Shows its public half only."""

    public: Key
    secret: Key

    @classmethod
    def generate(cls) -> KeyPair:
        """A fresh pair."""
        public, secret = zmq.curve_keypair()
        return cls(public=public.decode("ascii"), secret=secret.decode("ascii"))

    @property
    def is_whole(self) -> bool:
        """Whether the halves belong together."""
        try:
            return zmq.curve_public(self.secret.encode()) == self.public.encode()
        except (ValueError, zmq.ZMQError):  # no Z85
            return False

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r}, secret=…)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """As above, for consoles and tracebacks that print structs by themselves."""
        return [("public", self.public)]


class ChannelKeys(msgspec.Struct, frozen=True, kw_only=True):
    """What one process needs: its own pair, and the public keys of every kind of process."""

    own: KeyPair
    coordinator: Key
    worker: Key
    launcher: Key

    def server_key(self, channel: Channel) -> str:
        """Public key of who listens on a channel."""
        return self.coordinator if channel == "control" else self.worker

    def allowed(self, channel: str) -> frozenset[str]:
        """Public keys of those who may connect to it; none for a channel that does not exist."""
        if channel == "control":
            return frozenset((self.worker, self.launcher))
        return frozenset((self.worker,)) if channel == "peers" else frozenset()


class ClusterKeys(msgspec.Struct, frozen=True, kw_only=True):
    """All pairs of a cluster, for the launcher alone: `ClusterKeys.generate()`, then one of `for_…`."""

    coordinator: KeyPair
    worker: KeyPair
    launcher: KeyPair

    @classmethod
    def generate(cls) -> ClusterKeys:
        """Fresh keys for a cluster that starts now."""
        return cls(
            coordinator=KeyPair.generate(),
            worker=KeyPair.generate(),
            launcher=KeyPair.generate(),
        )

    def for_coordinator(self) -> ChannelKeys:
        """For CoordinatorSpec.keys."""
        return self._with(self.coordinator)

    def for_worker(self) -> ChannelKeys:
        """For WorkerSpec.keys."""
        return self._with(self.worker)

    def for_launcher(self) -> ChannelKeys:
        """For the launcher's own line to the coordinator."""
        return self._with(self.launcher)

    def _with(self, own: KeyPair) -> ChannelKeys:
        return ChannelKeys(
            own=own,
            coordinator=self.coordinator.public,
            worker=self.worker.public,
            launcher=self.launcher.public,
        )

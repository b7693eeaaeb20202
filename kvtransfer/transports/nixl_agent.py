"""One NIXL agent. Owns what is registered with it and the metadata it knows; speaks host memory only.

The agent's own serializer of descriptors (it uses pickle) is not used: addresses travel as numbers in
typed messages, and only NIXL's binary metadata is passed through.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from kvtransfer.transports.rdma import has_rdma
from protocol.addresses import is_loopback
from protocol.errors import PeerLost, TransferError
from protocol.randomness import random_hex

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from engine.kv.pool_memory import KvMemory

MODULES = ("nixl_cu12", "nixl_cu13", "nixl")
Extent = tuple[int, int]
"""(address, bytes)."""


def _call(do: Callable[..., Any], *arguments: Any) -> Any:
    """Whatever NIXL raises becomes a TransferError; PeerLost when it says that the other end is gone."""
    try:
        return do(*arguments)
    except Exception as error:  # each of its dozen classes derives from Exception alone
        kind = PeerLost if "RemoteDisconnect" in type(error).__name__ else TransferError
        raise kind(f"NIXL: {type(error).__name__}: {error}") from error


def address_of(memory: KvMemory) -> int:
    """Where the pool lies in this process."""
    return int(np.frombuffer(memory.buffer, dtype=np.uint8).ctypes.data)


class Agent:
    """Thin, typed, and safe to call from several threads (NIXL's strict mode)."""

    def __init__(self, label: str, host: str = "127.0.0.1") -> None:
        if not has_rdma():
            # For libraries loaded from here on. UCX's InfiniBand module, of no use then, mixes the
            # wheel's libnl with the system's, and the process dies at its very end (NIXL 1.5.1).
            os.putenv("UCX_MODULES", "^ib")
        if is_loopback(host):
            os.putenv("UCX_NET_DEVICES", "lo")  # no listener beyond loopback
        name = next(name for name in MODULES if find_spec(name) is not None)
        api = import_module(f"{name}._api")
        config = api.nixl_agent_config(
            backends=["UCX"],
            enable_prog_thread=False,  # it spins: 0.6 of a core while nothing happens
            sync_mode=api.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT,
        )
        self._agent = _call(api.nixl_agent, f"{label}-{random_hex(8)}", config)

    def register(self, extents: Sequence[Extent]) -> Any:
        """Make memory known to the network; the result is what `deregister` takes."""
        described = [(address, size, 0, "") for address, size in extents]
        return _call(self._agent.register_memory, described, "DRAM")

    def deregister(self, registration: Any) -> None:
        """Take it back; remote reads of it fail from now on."""
        _call(self._agent.deregister_memory, registration)

    def describe(self, registration: Any) -> bytes:
        """Metadata by which a reader may read just that, and reach this agent."""
        describe = partial(self._agent.get_partial_agent_metadata, inc_conn_info=True)
        return bytes(_call(describe, registration))

    def descriptors(self, extents: Sequence[Extent]) -> Any:
        """For `describe`: extents that are registered."""
        described = [(address, size, 0, "") for address, size in extents]
        return _call(self._agent.get_reg_descs, described, "DRAM")

    def learn(self, metadata: bytes, known: str) -> str:
        """Take in a source's metadata; returns its agent's name.

        NIXL refuses metadata that changes what it knows of an address (a block registered anew has
        a new key on RDMA): the source is then forgotten and learnt again."""
        try:
            name = _call(self._agent.add_remote_agent, metadata)
        except TransferError:
            if not known:
                raise
            self.forget(known)
            name = _call(self._agent.add_remote_agent, metadata)
        return str(name.decode() if isinstance(name, bytes) else name)

    def forget(self, name: str) -> None:
        """Disconnect from a source."""
        _call(self._agent.remove_remote_agent, name)

    def progress(self) -> None:
        """Let readers connect; over TCP, also let them read. RDMA needs no help from here."""
        _call(self._agent.update_notifs)

    def start_read(self, name: str, local: Sequence[Extent], remote: Sequence[Extent]) -> Any:
        """Begin to read remote[i] into local[i]."""
        ours = self._agent.get_xfer_descs([(at, size, 0) for at, size in local], "DRAM")
        theirs = self._agent.get_xfer_descs([(at, size, 0) for at, size in remote], "DRAM")
        handle = _call(self._agent.initialize_xfer, "READ", ours, theirs, name)
        _call(self._agent.transfer, handle)
        return handle

    def is_done(self, handle: Any) -> bool:
        """Whether a read is over; raises TransferError when it failed."""
        state = _call(self._agent.check_xfer_state, handle)
        if state == "ERR":
            raise TransferError("NIXL: the transfer failed")
        return bool(state == "DONE")

    def release(self, handle: Any) -> None:
        """Give a read's handle back; raises TransferError while it is still under way."""
        _call(handle.release)


class Registrations:
    """Blocks of one pool that readers may reach now; each lease keeps its blocks registered."""

    def __init__(self, agent: Agent, memory: KvMemory) -> None:
        self._agent = agent
        self._size = memory.block_bytes
        self.base = address_of(memory)
        self._uses: Counter[int] = Counter()
        self.by_lease: dict[str, set[int]] = {}

    def extents(self, block_ids: Iterable[int]) -> list[Extent]:
        """Where these blocks lie."""
        return [(self.base + block_id * self._size, self._size) for block_id in block_ids]

    def open(self, lease_id: str, block_ids: Sequence[int]) -> bytes:
        """Register what is not yet, for this lease; returns the metadata of all these blocks."""
        leased = self.by_lease.setdefault(lease_id, set())
        added = set(block_ids) - leased
        unknown = sorted(block_id for block_id in added if not self._uses[block_id])
        if unknown:
            self._agent.register(self.extents(unknown))
        self._uses.update(added)
        leased |= added
        return self._agent.describe(self._agent.descriptors(self.extents(block_ids)))

    def close(self, lease_id: str) -> None:
        """The lease is over: deregister what no other lease needs."""
        ended = self.by_lease.pop(lease_id)
        self._uses.subtract(ended)
        unused = sorted(block_id for block_id in ended if not self._uses[block_id])
        for block_id in unused:
            del self._uses[block_id]
        if unused:
            self._agent.deregister(self._agent.descriptors(self.extents(unused)))

"""One block there and back. Owns the proof that a transport works on this host, for `baton doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.kv.block_pool import BlockPool
from engine.kv.pool_memory import KvMemory
from kvtransfer.promises.lease import LeaseTable
from kvtransfer.transport import LocalPool
from kvtransfer.transports.select import make_transports
from protocol.channels import Channels
from protocol.clock import SystemClock, precise_s
from protocol.errors import TransferError
from protocol.randomness import random_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from kvtransfer.transport import Transport

BLOCK_BYTES = 4096
LIMIT_S = 5.0
_NAME = "doctor"


def round_trip_s(name: str, directory: Path) -> float:
    """Seconds that a block takes over transport `name`, server and reader both in this process.

    `directory` is for sockets. Raises TransferError with the cause when it does not arrive."""
    memory, pool = KvMemory(2, BLOCK_BYTES), BlockPool(2)
    leases = LeaseTable(SystemClock())
    hold = pool.allocate(2, _NAME)
    if hold is None:
        raise AssertionError("an empty pool has room")
    leases.grant(_NAME, hold, 10 * LIMIT_S)
    local = LocalPool(memory, leases, _NAME)
    channels = Channels()
    try:
        made = make_transports(
            name,
            local,
            channels=channels,
            socket_path=directory / f"{name}.sock",
            peer_host="127.0.0.1",
        )
        return _read_a_block(made[name], memory)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise TransferError(f"{type(error).__name__}: {error}") from error
    finally:
        channels.close()
        channels.context.destroy(linger=0)


def _read_a_block(transport: Transport, memory: KvMemory) -> float:
    content = random_bytes(BLOCK_BYTES)
    memory.block(0)[:] = content
    server = transport.serve()
    try:
        link = transport.connect(server.address, _NAME, LIMIT_S)
        try:
            started_s = precise_s()
            link.read(_NAME, [0], [1], LIMIT_S)
            seconds = precise_s() - started_s
        finally:
            link.close()
    finally:
        server.close()
        transport.close()
    if bytes(memory.block(1)) != content:
        raise TransferError("a block arrived changed")
    return seconds

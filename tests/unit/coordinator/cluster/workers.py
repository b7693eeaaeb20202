"""Workers that are ready, for tests of who is given what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.messages.records import PeerAddress
from protocol.messages.reports import Hello
from tests.model.surroundings import fingerprint

if TYPE_CHECKING:
    from coordinator.cluster.registry import Registry, WorkerRecord
    from protocol.roles import Role

BLOCK_SIZE = 16


def ready_worker(
    registry: Registry, worker_id: str, role: Role, step_tokens: int, num_blocks: int = 100_000
) -> WorkerRecord:
    """Registered and proven."""
    address = PeerAddress(
        worker_id=worker_id, incarnation=worker_id, host="here", control="", transports={}
    )
    hello = Hello(
        worker_id=worker_id,
        incarnation=worker_id,
        role=role,
        pid=1,
        host="here",
        boot_id="b",
        fingerprint=fingerprint(BLOCK_SIZE),
        address=address,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        max_model_len=1 << 20,
        max_num_seqs=64,
        max_num_batched_tokens=step_tokens,
        backend="none",
    )
    record = registry.register(hello, worker_id.encode(), 0.0)
    assert record.passed_probe() or not role.computes
    return record

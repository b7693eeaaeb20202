"""The conservation account. Owns the audits in flight and their JSON shape; changes nothing."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

from protocol.messages.orders import Audit

if TYPE_CHECKING:
    from coordinator.cluster.books import Books
    from coordinator.cluster.control_socket import Outgoing
    from coordinator.cluster.dispatch import WaitingLine
    from coordinator.cluster.live_requests import LiveRequests
    from protocol.messages.reports import AuditReply
    from protocol.worker_load import BlockCounts

AUDIT_TIMEOUT_S = 5.0


def blocks_json(blocks: BlockCounts) -> dict[str, int]:
    """`{"total","free","cached","held"}`."""
    return {
        "total": blocks.total,
        "free": blocks.free,
        "cached": blocks.cached,
        "held": blocks.held,
    }


def _reply_json(reply: AuditReply) -> dict[str, Any]:
    return {
        "id": reply.worker_id,
        "blocks": blocks_json(reply.blocks),
        "holds": {account.owner: account.blocks for account in reply.holds},
        "leases": reply.leases,
        "transfers": reply.transfers,
        "sequences": reply.sequences,
        "stale_releases": reply.stale_releases,
        "shm_bytes": reply.shm_bytes,
        "fds": reply.fds,
        "threads": reply.threads,
        "balanced": reply.balanced,
    }


class AuditBook:
    """Audits in flight, by number."""

    def __init__(
        self, books: Books, line: WaitingLine, requests: LiveRequests, outgoing: Outgoing
    ) -> None:
        self._books = books
        self._line = line
        self._requests = requests
        self._outgoing = outgoing
        self._numbers = itertools.count(1)
        self._waiting: dict[tuple[int, str], asyncio.Future[AuditReply]] = {}

    async def collect(self) -> dict[str, Any]:
        """Every worker's account; a worker that does not answer in time makes it unbalanced."""
        audit_id = next(self._numbers)
        loop = asyncio.get_running_loop()
        pending: dict[str, asyncio.Future[AuditReply]] = {}
        for record in self._books.registry:
            future: asyncio.Future[AuditReply] = loop.create_future()
            self._waiting[(audit_id, record.incarnation)] = future
            pending[record.worker_id] = future
            order = Audit(incarnation=record.incarnation, audit_id=audit_id)
            self._outgoing.send_order(record, order)
        if pending:
            await asyncio.wait(pending.values(), timeout=AUDIT_TIMEOUT_S)
        for key in [key for key in self._waiting if key[0] == audit_id]:
            del self._waiting[key]
        replies = {name: future.result() for name, future in pending.items() if future.done()}
        return self._account(replies, sorted(set(pending) - set(replies)))

    def _account(self, replies: dict[str, AuditReply], silent: list[str]) -> dict[str, Any]:
        live, reservations = len(self._requests), self._books.ledger.num_reservations()
        return {
            "balanced": not silent
            and all(reply.balanced for reply in replies.values())
            and (live > 0 or reservations == 0),
            "silent_workers": silent,
            "coordinator": {
                "live_requests": live,
                "queued_requests": len(self._line),
                "reservations": reservations,
            },
            "workers": [_reply_json(replies[name]) for name in sorted(replies)],
        }

    def on_reply(self, reply: AuditReply) -> None:
        """A worker's account came; one that nobody waits for is dropped."""
        future = self._waiting.get((reply.audit_id, reply.incarnation))
        if future is not None and not future.done():
            future.set_result(reply)

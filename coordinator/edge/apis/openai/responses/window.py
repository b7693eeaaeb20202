"""Responses that can be asked for again and gone on with. Owns the window: in memory, bounded in number and bytes.

The oldest leave first, of the tenant that holds most: nobody's go for those of one that has more. Nobody sees another
tenant's. What is kept is bytes: a million objects would make every look of the garbage collector a pause of all streams.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from coordinator.edge.text.conversation import Turn
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_RESPONSES = 1024
MAX_BYTES = 64 * 1024 * 1024
NOT_FOUND = "previous_response_not_found"


class ResponseNotFound(InvalidRequest):
    """There is none by this name, or not any more, or it is somebody else's."""

    http_status = 404
    error_type = "NotFoundError"


@dataclass(frozen=True, slots=True)
class KeptResponse:
    """A response as it was told, its input as a page of items, and all turns of its conversation with its own as the
    last, as `written` makes them."""

    tenant: str
    told: bytes
    items: bytes
    turns: bytes

    @property
    def num_bytes(self) -> int:
        """How much of the window it takes; what it shares with its predecessors counts as its own."""
        return len(self.told) + len(self.items) + len(self.turns)


_turns = msgspec.json.Decoder(list[Turn])
written = msgspec.json.Encoder().encode


class Shelf(OrderedDict[str, KeptResponse]):
    """One tenant's, the oldest first. `num_bytes` is their sum."""

    num_bytes = 0

    def put(self, response_id: str, response: KeptResponse) -> None:
        """Add one, as the newest."""
        self[response_id] = response
        self.num_bytes += response.num_bytes

    def take(self, response_id: str) -> int:
        """Remove it; how many bytes it took."""
        size = self.pop(response_id).num_bytes
        self.num_bytes -= size
        return size


class ResponseWindow:
    """`num_bytes` is the sum of what is kept. Long answers are kept from beside the event loop."""

    def __init__(self, most: int = MAX_RESPONSES, most_bytes: int = MAX_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._shelves: dict[str, Shelf] = {}
        self._lock = threading.Lock()
        self._count = 0
        self.num_bytes = 0

    def __len__(self) -> int:
        return self._count

    def keep(self, response_id: str, response: KeptResponse) -> None:
        """Take it, and let others go; one that is larger than the whole window is not kept."""
        if response.num_bytes > self._most_bytes:
            return
        with self._lock:
            self._shelves.setdefault(response.tenant, Shelf()).put(response_id, response)
            self._count += 1
            self.num_bytes += response.num_bytes
            while self.num_bytes > self._most_bytes:
                self._drop_oldest(max(self._shelves.items(), key=lambda held: held[1].num_bytes))
            while self._count > self._most:
                self._drop_oldest(max(self._shelves.items(), key=lambda held: len(held[1])))

    def find(self, response_id: str, tenant: str) -> KeptResponse:
        """The response; raises ResponseNotFound."""
        shelf = self._shelves.get(tenant)
        response = None if shelf is None else shelf.get(response_id)
        if response is None:
            raise ResponseNotFound(f"there is no response {response_id!r} here", "response_id")
        return response

    def drop(self, response_id: str, tenant: str) -> None:
        """Forget a response; raises ResponseNotFound."""
        with self._lock:
            self.find(response_id, tenant)
            self._take(tenant, response_id)

    def _drop_oldest(self, held: tuple[str, Shelf]) -> None:
        tenant, shelf = held
        self._take(tenant, next(iter(shelf)))

    def _take(self, tenant: str, response_id: str) -> None:
        shelf = self._shelves[tenant]
        self.num_bytes -= shelf.take(response_id)
        self._count -= 1
        if not shelf:
            del self._shelves[tenant]

    def turns_before(self, response_id: str | None, tenant: str) -> Sequence[Turn]:
        """What a request that names its predecessor goes on with; raises InvalidRequest."""
        if response_id is None:
            return ()
        try:
            return _turns.decode(self.find(response_id, tenant).turns)
        except ResponseNotFound as error:
            told = f"previous response with id {response_id!r} not found"
            raise InvalidRequest(told, "previous_response_id", NOT_FOUND) from error

"""Responses that can be asked for again and gone on with. Owns the window: in memory, bounded in number and bytes.

The oldest leave first. Nobody sees another tenant's. What is kept is bytes: a million objects would make every look of
the garbage collector a pause of all streams.
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


class ResponseWindow:
    """`num_bytes` is the sum of what is kept. Long answers are kept from beside the event loop."""

    def __init__(self, most: int = MAX_RESPONSES, most_bytes: int = MAX_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._kept: OrderedDict[str, tuple[int, KeptResponse]] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, response_id: str, response: KeptResponse) -> None:
        """Take it, and let the oldest go; one that is larger than the whole window is not kept."""
        size = response.num_bytes
        if size > self._most_bytes:
            return
        with self._lock:
            self._kept[response_id] = size, response
            self.num_bytes += size
            while self.num_bytes > self._most_bytes or len(self._kept) > self._most:
                _, (gone, _) = self._kept.popitem(last=False)
                self.num_bytes -= gone

    def find(self, response_id: str, tenant: str) -> KeptResponse:
        """The response; raises ResponseNotFound."""
        _, response = self._kept.get(response_id, (0, None))
        if response is None or response.tenant != tenant:
            raise ResponseNotFound(f"there is no response {response_id!r} here", "response_id")
        return response

    def drop(self, response_id: str, tenant: str) -> None:
        """Forget a response; raises ResponseNotFound."""
        with self._lock:
            self.find(response_id, tenant)
            size, _ = self._kept.pop(response_id)
            self.num_bytes -= size

    def turns_before(self, response_id: str | None, tenant: str) -> Sequence[Turn]:
        """What a request that names its predecessor goes on with; raises InvalidRequest."""
        if response_id is None:
            return ()
        try:
            return _turns.decode(self.find(response_id, tenant).turns)
        except ResponseNotFound as error:
            told = f"previous response with id {response_id!r} not found"
            raise InvalidRequest(told, "previous_response_id", NOT_FOUND) from error

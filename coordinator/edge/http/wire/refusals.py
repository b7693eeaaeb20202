"""What is answered before there is a request. Owns the bytes of such an answer, in the shape of every other error."""

from __future__ import annotations

from http import HTTPStatus

from coordinator.edge.http.error_replies import error_fields

TYPES = {
    408: "RequestTimeoutError",
    414: "BadRequestError",
    431: "BadRequestError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
    505: "HttpVersionNotSupportedError",
}


class WireRefusal(Exception):
    """The connection ends with this answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = TYPES.get(status, "BadRequestError")

    def answer(self) -> bytes:
        """Status line, headers and body."""
        body = error_fields(str(self), self.kind)
        retry = "retry-after: 1\r\n" if self.status == HTTPStatus.SERVICE_UNAVAILABLE else ""
        head = (
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{retry}connection: close\r\n\r\n"
        )
        return head.encode("ascii") + body

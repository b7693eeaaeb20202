"""Who may ask. Owns the API keys, as hashes; a route is closed unless its router says otherwise.

The check is a dependency of the routed endpoint, never of a path string, so no spelling of a path
goes around it.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from fastapi import Request  # noqa: TC002 - FastAPI reads the annotation

from coordinator.edge.http.error_replies import Unauthorized
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

TENANT_CHARACTERS = 16


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class KeyGuard:
    """Lets a request pass that shows one of `keys`; without keys every request passes."""

    def __init__(self, keys: Sequence[str]) -> None:
        if any(not key.strip() for key in keys):
            raise ConfigError("an API key cannot be empty")
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, request: Request) -> None:
        """Raise Unauthorized, or remember the tenant, whose prefix cache is its own."""
        if not self._digests:
            return
        shown = _digest(_shown_key(request))
        matches = [hmac.compare_digest(shown, digest) for digest in self._digests]
        if not any(matches):
            raise Unauthorized("a valid API key is needed: Authorization: Bearer KEY")
        if len(self._digests) > 1:
            request.state.tenant = shown.hex()[:TENANT_CHARACTERS]


def _shown_key(request: Request) -> str:
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    return request.headers.get("x-api-key", "")

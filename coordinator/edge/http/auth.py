"""Who asks, and what they may. Owns the API keys, as hashes; a route is closed unless its router says otherwise.

The check is a dependency of the routed endpoint, never of a path string, so no spelling of a path
goes around it. An endpoint that needs to know who asks depends on the guard again and gets the same
`Principal`: FastAPI runs a dependency once a request.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from fastapi import Request  # noqa: TC002 - FastAPI reads the annotation

from coordinator.edge.http.error_replies import Forbidden, Unauthorized
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

TENANT_CHARACTERS = 16


class Scope(Enum):
    """What a key opens."""

    GENERATE = "generate"
    OPERATE = "operate"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `tenant` is "" where all share one prefix cache: without keys, or with a single one."""

    scopes: frozenset[Scope]
    tenant: str = ""

    def salt(self, own: str) -> str:
        """Prefix caches are shared by what has the same salt; a tenant's `own` one divides its cache further."""
        return f"{self.tenant}/{own}" if self.tenant else own


class Keys:
    """Every key and what it opens; a scope without keys is everybody's."""

    def __init__(self, api_keys: Sequence[str], admin_keys: Sequence[str]) -> None:
        if any(not key.strip() for key in (*api_keys, *admin_keys)):
            raise ConfigError("an API key cannot be empty")
        self._digests = {
            Scope.GENERATE: [_digest(key) for key in api_keys],
            Scope.OPERATE: [_digest(key) for key in admin_keys or api_keys],
        }

    def principal(self, request: Request) -> Principal:
        """Whoever shows this request's key."""
        shown = _digest(_shown_key(request))
        opened = {
            scope
            for scope, digests in self._digests.items()
            if not digests or _is_among(shown, digests)
        }
        is_one_of_several = Scope.GENERATE in opened and len(self._digests[Scope.GENERATE]) > 1
        tenant = shown.hex()[:TENANT_CHARACTERS] if is_one_of_several else ""
        return Principal(frozenset(opened), tenant)


class KeyGuard:
    """Lets a request pass whose principal has `scope`."""

    def __init__(self, keys: Keys, scope: Scope) -> None:
        self._keys = keys
        self._scope = scope

    async def __call__(self, request: Request) -> Principal:
        """Who asks; Unauthorized, or Forbidden for a key that opens something else."""
        principal = self._keys.principal(request)
        if self._scope not in principal.scopes:
            if self._scope is Scope.OPERATE and Scope.GENERATE in principal.scopes:
                raise Forbidden("this API key is not for administration: use the --admin-api-key")
            raise Unauthorized("a valid API key is needed: Authorization: Bearer KEY")
        return principal


def _is_among(shown: bytes, digests: Sequence[bytes]) -> bool:
    """Every one is compared, so that the time tells nothing."""
    matches = [hmac.compare_digest(shown, digest) for digest in digests]
    return any(matches)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _shown_key(request: Request) -> str:
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    return request.headers.get("x-api-key", "")

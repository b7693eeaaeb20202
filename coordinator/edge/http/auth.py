"""Who asks, and what they may. Owns the API keys of the command line, as hashes, and asks the key book for all others; a
route is closed unless its router says otherwise.

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

    from coordinator.accounts.accounts import Accounts
    from coordinator.accounts.booking import Booking
    from coordinator.accounts.terms import KeyRecord

TENANT_CHARACTERS = 16


class Scope(Enum):
    """What a key opens."""

    INFERENCE = "inference"
    METRICS = "metrics"
    ADMIN = "admin"


OPERATING = (Scope.METRICS, Scope.ADMIN)
"""What an admin key of the command line opens."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `tenant` is "" where all share one prefix cache: without keys, or with a single one of the command line.
    `root` is the cache's salt where it is not the tenant's name. `weight` and `priority` are for whoever divides the
    waiting line; `record` is None for a key of the command line, which has no limits."""

    scopes: frozenset[Scope]
    tenant: str = ""
    key_id: str = ""
    root: str = ""
    weight: float = 1.0
    priority: int = 0
    record: KeyRecord | None = None

    def salt(self, own: str) -> str:
        """Prefix caches are shared by what has the same salt; a tenant's `own` one divides its cache further."""
        root = self.root or self.tenant
        return f"{root}/{own}" if root else own

    def may_use(self, model: str) -> bool:
        """Whether its key allows the model of that name."""
        return (
            self.record is None or not self.record.terms.models or model in self.record.terms.models
        )

    def check_model(self, model: str) -> None:
        """Raise Forbidden for a model that its key does not allow."""
        if not self.may_use(model):
            told = f"this API key may not use the model {model!r}"
            raise Forbidden(told, code="model_not_allowed")


class Keys:
    """Every key and what it opens. `accounts` has those of the database; without it, a scope without keys is everybody's."""

    def __init__(
        self,
        api_keys: Sequence[str],
        admin_keys: Sequence[str],
        accounts: Accounts | None = None,
    ) -> None:
        if any(not key.strip() for key in (*api_keys, *admin_keys)):
            raise ConfigError("an API key cannot be empty")
        self.accounts = accounts
        # beside accounts no client's key makes keys, or reads all usage
        operating = [_digest(key) for key in admin_keys or (() if accounts else api_keys)]
        self._digests = {
            Scope.INFERENCE: [_digest(key) for key in api_keys],
            **dict.fromkeys(OPERATING, operating),
        }

    def principal(self, request: Request) -> Principal:
        """Whoever shows this request's key; Unauthorized for a key of the database that is no good any more."""
        told = _shown_key(request)
        if self.accounts is not None and (record := self._found(self.accounts, told)) is not None:
            return _principal_of(record, self.accounts)
        shown = _digest(told)
        opened = {
            scope
            for scope, digests in self._digests.items()
            if _is_among(shown, digests) or (not digests and self.accounts is None)
        }
        is_one_of_several = Scope.INFERENCE in opened and len(self._digests[Scope.INFERENCE]) > 1
        name = shown.hex()[:TENANT_CHARACTERS]
        key_id = f"static-{name}" if opened else ""
        return Principal(frozenset(opened), name if is_one_of_several else "", key_id)

    def booking(self, principal: Principal) -> Booking | None:
        """Where a request of theirs is booked, if anything is."""
        if self.accounts is None:
            return None
        return self.accounts.booking(principal.key_id, principal.tenant, principal.record)

    def check_room(self, principal: Principal, model: str) -> None:
        """Raise LimitReached or LedgerUnavailable where no request of theirs is admitted now."""
        if self.accounts is not None:
            self.accounts.check_room(principal.record, model)

    @staticmethod
    def _found(accounts: Accounts, told: str) -> KeyRecord | None:
        now_s = accounts.key_now_s()
        record = accounts.book.find(told, now_s)
        if record is not None and (trouble := record.trouble(now_s)):
            raise Unauthorized(trouble)
        return record


def _principal_of(record: KeyRecord, accounts: Accounts) -> Principal:
    terms = record.terms
    scopes = {Scope(name) for name in terms.scopes}
    if Scope.ADMIN in scopes:
        scopes.add(Scope.METRICS)
    return Principal(
        frozenset(scopes),
        terms.tenant,
        record.key_id,
        accounts.book.salt(terms),
        terms.weight,
        terms.priority,
        record,
    )


class KeyGuard:
    """Lets a request pass whose principal has `scope`; without one, whoever shows a good key."""

    def __init__(self, keys: Keys, scope: Scope | None) -> None:
        self.keys = keys
        self._scope = scope

    async def __call__(self, request: Request) -> Principal:
        """Who asks; Unauthorized, or Forbidden for a key that opens something else."""
        principal = self.keys.principal(request)
        if not principal.scopes:
            raise Unauthorized("a valid API key is needed: Authorization: Bearer KEY")
        if self._scope is None or self._scope in principal.scopes:
            return principal
        if principal.record is not None:
            raise Forbidden(f"this API key has not the scope {self._scope.value!r}")
        if self._scope in OPERATING:
            raise Forbidden("this API key is not for administration: use the --admin-api-key")
        raise Unauthorized("a valid API key is needed: Authorization: Bearer KEY")


def _is_among(shown: bytes, digests: Sequence[bytes]) -> bool:
    """Every one is compared, so that the time tells nothing."""
    matches = [hmac.compare_digest(shown, digest) for digest in digests]
    return any(matches)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _shown_key(request: Request) -> str:
    scheme, _, credentials = _only(request, "authorization").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    return _only(request, "x-api-key")


def _only(request: Request, name: str) -> str:
    """A header that says one thing: of two, a proxy before this server may have looked at the other."""
    told = request.headers.getlist(name)
    if len(told) > 1:
        raise Unauthorized(f"this request has {len(told)} headers {name!r}: send one")
    return told[0] if told else ""

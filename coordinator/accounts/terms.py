"""What a key is and what it allows. Owns its secret's form, its digest at rest, and which terms make sense; pure.

sk-baton-ID.SECRET      ID is public and names the key everywhere; of the whole only the SHA-256 is kept
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Literal

import msgspec

from protocol.errors import BatonError, InvalidRequest
from protocol.randomness import random_hex

PREFIX = "sk-baton-"
SCOPES = ("inference", "metrics", "admin")
NANO = 1_000_000_000
MAX_NAME_CHARACTERS = 64
MAX_MODEL_CHARACTERS = 128
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@+:-]*")

ScopeName = Literal["inference", "metrics", "admin"]


class KeyNotFound(InvalidRequest):
    """An operator names a key that is not here."""

    http_status = 404
    error_type = "NotFoundError"
    code: str | None = "key_not_found"


class KeyConflict(BatonError):
    """What is asked cannot be done with a key that was revoked."""

    http_status = 409
    error_type = "ConflictError"


MIN_WEIGHT, MAX_WEIGHT = 0.01, 100.0
MAX_PRIORITY = 1000


class KeyTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a key allows; None and () set no limit. Without a `tenant` a key is its own: its id becomes the name of one.
    `budget` is money, in the currency of the prices. Requests of keys
    with one `shared_cache` find each other's prefixes; all others find those of their own tenant only. In the waiting line a tenant
    gets work by its keys' `weight`, and of one tenant's requests the lowest `priority` goes first."""

    tenant: str = ""
    name: str = ""
    scopes: tuple[ScopeName, ...] = ("inference",)
    models: tuple[str, ...] = ()
    expires_at: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    parallel_requests: int | None = None
    budget: float | None = None
    budget_tokens: int | None = None
    budget_period_s: float | None = None
    tags: tuple[str, ...] = ()
    weight: float = 1.0
    priority: int = 0
    shared_cache: str = ""

    @property
    def budget_nano(self) -> int | None:
        """The budget in billionths, so that sums are exact."""
        return None if self.budget is None else round(self.budget * NANO)

    def check(self) -> None:
        """Raise InvalidRequest, naming the field, for terms that make no sense."""
        for field in ("tenant", "name", "shared_cache"):
            if value := getattr(self, field):
                _check_name(value, field)
        for tag in self.tags:
            _check_name(tag, "tags")
        if not self.scopes:
            raise InvalidRequest("a key needs a scope", "scopes")
        if any(not model or len(model) > MAX_MODEL_CHARACTERS for model in self.models):
            raise InvalidRequest("models must be names of models", "models")
        self._check_numbers()

    def _check_numbers(self) -> None:
        for field in ("requests_per_minute", "tokens_per_minute", "parallel_requests"):
            if (value := getattr(self, field)) is not None and value < 1:
                raise InvalidRequest(f"{field} must be at least 1", field)
        for field in ("budget", "budget_tokens", "budget_period_s", "expires_at"):
            if (value := getattr(self, field)) is not None and not 0 < value < 1e15:
                raise InvalidRequest(f"{field} must be more than 0", field)
        if not MIN_WEIGHT <= self.weight <= MAX_WEIGHT:
            told = f"weight must be between {MIN_WEIGHT:g} and {MAX_WEIGHT:g}"
            raise InvalidRequest(told, "weight")
        if not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            told = f"priority must be between {-MAX_PRIORITY} and {MAX_PRIORITY}"
            raise InvalidRequest(told, "priority")
        if self.budget_period_s is not None and self.budget is None and self.budget_tokens is None:
            raise InvalidRequest("a period needs a budget or budget_tokens", "budget_period_s")


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is kept. After a rotation the former secret is good until `former_until`."""

    key_id: str
    digest: bytes
    terms: KeyTerms
    created_at: float
    revoked_at: float | None = None
    former_digest: bytes | None = None
    former_until: float = 0.0

    def is_shown_by(self, shown: str, now_s: float) -> bool:
        """Whether that secret is this key's; both are always compared, so that the time tells nothing."""
        digest = digest_of(shown)
        is_own = hmac.compare_digest(digest, self.digest)
        is_former = hmac.compare_digest(digest, self.former_digest or b"")
        return is_own or (is_former and now_s < self.former_until)

    def trouble(self, now_s: float) -> str:
        """Why it opens nothing any more, or ""."""
        if self.revoked_at is not None:
            return "this API key was revoked"
        if self.terms.expires_at is not None and now_s >= self.terms.expires_at:
            return "this API key has expired"
        return ""

    @property
    def masked(self) -> str:
        """As it may be shown."""
        return f"{PREFIX}{self.key_id}.****"


class NewKey(msgspec.Struct, frozen=True):
    """A key and its secret, which is told once."""

    record: KeyRecord
    secret: str


def make_key(terms: KeyTerms, now_s: float) -> NewKey:
    """A new one; raises InvalidRequest for terms that make no sense."""
    terms.check()
    key_id = random_hex(6)
    terms = msgspec.structs.replace(terms, tenant=terms.tenant or key_id)
    secret = make_secret(key_id)
    record = KeyRecord(key_id=key_id, digest=digest_of(secret), terms=terms, created_at=now_s)
    return NewKey(record, secret)


def rotated(record: KeyRecord, secret: str, now_s: float, grace_s: float = 0.0) -> KeyRecord:
    """The same key with another secret; the former one is good for `grace_s` more. KeyConflict for a revoked one."""
    if record.revoked_at is not None:
        raise KeyConflict(f"the key {record.key_id} was revoked; create another one")
    return msgspec.structs.replace(
        record,
        digest=digest_of(secret),
        former_digest=record.digest if grace_s > 0 else None,
        former_until=now_s + grace_s if grace_s > 0 else 0.0,
    )


def revoked(record: KeyRecord, now_s: float) -> KeyRecord:
    """Neither secret opens anything from now on; the first instant stays."""
    if record.revoked_at is not None:
        return record
    return msgspec.structs.replace(record, revoked_at=now_s, former_digest=None, former_until=0.0)


def make_secret(key_id: str) -> str:
    """256 random bits behind the key's id."""
    return f"{PREFIX}{key_id}.{random_hex(32)}"


def id_of(shown: str) -> str | None:
    """The id that a shown key names; None for what is no key of ours."""
    if not shown.startswith(PREFIX):
        return None
    return shown.removeprefix(PREFIX).partition(".")[0]


def digest_of(shown: str) -> bytes:
    """What is kept of a key: 256 random bits need no slow hash."""
    return hashlib.sha256(shown.encode("utf-8", "surrogateescape")).digest()


def _check_name(value: str, field: str) -> None:
    if len(value) > MAX_NAME_CHARACTERS or _NAME.fullmatch(value) is None:
        raise InvalidRequest(
            f"{field} must begin with a letter or digit, and have letters, digits, spaces and ._@+:- only, at most {MAX_NAME_CHARACTERS} of them",
            field,
        )

"""Every key in memory. Owns who is found by a shown secret, and the salts that keep tenants' prefix caches apart; pure."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from coordinator.accounts.terms import KeyNotFound, id_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from coordinator.accounts.terms import KeyRecord, KeyTerms

SALT_BYTES = 16


class KeyBook:
    """The keys of one server. `salt_key` is drawn once for a database: salts stay, and nobody can guess another's."""

    def __init__(self, salt_key: bytes, records: Iterable[KeyRecord] = ()) -> None:
        self._salt_key = salt_key
        self._records: dict[str, KeyRecord] = {}
        self.replace(records)

    def __iter__(self) -> Iterator[KeyRecord]:
        return iter(self._records.values())

    def replace(self, records: Iterable[KeyRecord]) -> None:
        """These are all there are. What was revoked here stays so, though the disk did not take it."""
        self._records = {record.key_id: self._still(record) for record in records}

    def put(self, record: KeyRecord) -> None:
        """A new or changed one."""
        self._records[record.key_id] = self._still(record)

    def _still(self, record: KeyRecord) -> KeyRecord:
        known = self._records.get(record.key_id)
        return record if known is None or known.revoked_at is None else known

    def get(self, key_id: str) -> KeyRecord:
        """By its id; raises KeyNotFound."""
        record = self._records.get(key_id)
        if record is None:
            raise KeyNotFound(f"there is no key {key_id!r}", "key_id")
        return record

    def find(self, shown: str, now_s: float) -> KeyRecord | None:
        """Whose secret that is, whatever its terms say."""
        record = self._records.get(id_of(shown) or "")
        if record is None or not record.is_shown_by(shown, now_s):
            return None
        return record

    def salt(self, terms: KeyTerms) -> str:
        """The root of that key's prefix cache: its tenant's, or what it shares."""
        name = f"shared:{terms.shared_cache}" if terms.shared_cache else f"tenant:{terms.tenant}"
        keyed = hashlib.blake2b(name.encode(), key=self._salt_key, digest_size=SALT_BYTES)
        return keyed.hexdigest()

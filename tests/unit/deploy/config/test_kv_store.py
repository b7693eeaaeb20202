"""How `--kv-store` is spelled, and what is said where it is spelled otherwise."""

from __future__ import annotations

import re

import pytest

from deploy.config.kv_store import KvStore, parse_kv_store

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "store"),
    [
        ("dram=2GiB", KvStore(2 * GIB)),
        (" dram=512MiB ", KvStore(512 << 20)),
        ("dram=1GiB,disk=20GiB,path=/var/lib/baton", KvStore(GIB, 20 * GIB, "/var/lib/baton")),
        ("path=/a b,disk=1GiB, dram=1GiB", KvStore(GIB, GIB, "/a b")),
        ("dram=1000001", KvStore(1_000_001)),
        ("dram=1GiB,disk=1GiB,path=a=b", KvStore(GIB, GIB, "a=b")),
    ],
)
def test_what_is_written_is_understood(text: str, store: KvStore) -> None:
    assert parse_kv_store(text) == store


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' is not understood: write dram="),
        ("2GiB", "'2GiB' is not understood"),
        ("dram", "'dram' is not understood"),
        ("dram=", "'dram=' is not understood"),
        ("ram=2GiB", "'ram=2GiB' is not understood"),
        ("dram=1GiB,", "'' is not understood"),
        ("DRAM=1GiB", "'DRAM=1GiB' is not understood"),
        ("dram=1GiB,dram=2GiB", "dram is given twice"),
        ("disk=1GiB,path=/p", "dram= is missing"),
        ("dram=1GiB,disk=1GiB", "disk= and path= belong together"),
        ("dram=1GiB,path=/p", "disk= and path= belong together"),
        ("dram=much", "much"),
        ("dram=-1GiB", "-1GiB"),
        ("dram=1GiB,disk=1e3,path=/p", "1e3"),
    ],
)
def test_what_is_not_understood_says_what_to_write(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        parse_kv_store(text)


@pytest.mark.parametrize(
    "store",
    [KvStore(2 * GIB), KvStore(3 << 20), KvStore(12_345_678, GIB, "/p")],
)
def test_what_is_shown_is_read_again(store: KvStore) -> None:
    assert parse_kv_store(str(store)) == store

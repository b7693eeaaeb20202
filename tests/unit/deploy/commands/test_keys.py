"""`baton keys` on a file: looking changes nothing, and needs nothing to be written."""

from __future__ import annotations

import json
import sqlite3

import pytest

from coordinator.accounts.database import Database
from deploy.commands.keys import main
from protocol.errors import BatonError, ConfigError


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    monkeypatch.delenv("BATON_KEYS_DB", raising=False)


@pytest.mark.parametrize("words", [["list"], ["show", "x"], ["rotate", "x"], ["revoke", "x"]])
def test_only_create_makes_a_file(tmp_path, words):
    file = tmp_path / "typo.db"
    with pytest.raises(ConfigError, match=r"there is no .*typo\.db; baton keys create"):
        main([*words, "--keys-db", str(file)])
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_is_not_there_is_told():
    with pytest.raises(ConfigError, match=r"^--keys-db: '~nobody_x/k\.db'"):
        main(["list", "--keys-db", "~nobody_x/k.db"])


def test_keys_are_shown_of_a_file_whose_disk_takes_nothing(tmp_path, capsys, monkeypatch):
    file = str(tmp_path / "keys.db")
    main(["create", "--keys-db", file, "--tenant", "acme", "--json"])
    key_id = json.loads(capsys.readouterr().out)["id"]
    connect = sqlite3.connect

    def reading(name, **options):
        assert "mode=ro" in name, "nothing is opened to be written"
        return connect(name, **options)

    monkeypatch.setattr(sqlite3, "connect", reading)
    main(["list", "--keys-db", file, "--json"])
    assert [key["id"] for key in json.loads(capsys.readouterr().out)] == [key_id]
    main(["show", key_id, "--keys-db", file])
    assert json.loads(capsys.readouterr().out)["tenant"] == "acme"


def test_what_is_no_database_is_named(tmp_path):
    (tmp_path / "keys.db").write_text("no database at all, whatever its name says" * 100)
    with pytest.raises(ConfigError, match=r"cannot read .*keys\.db"):
        main(["list", "--keys-db", str(tmp_path / "keys.db")])


@pytest.mark.parametrize("words", [["list"], ["show", "x"]])
def test_a_file_without_keys_is_no_reason_for_a_traceback(tmp_path, words):
    (tmp_path / "keys.db").touch()
    with pytest.raises(BatonError, match="--keys-db: no such table"):
        main([*words, "--keys-db", str(tmp_path / "keys.db")])


def test_a_disk_that_takes_nothing_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Database, "put_key", full)
    with pytest.raises(BatonError, match="--keys-db: database or disk is full"):
        main(["create", "--keys-db", str(tmp_path / "keys.db")])


def test_names_are_listed_as_they_stand(tmp_path, capsys):
    file = str(tmp_path / "keys.db")
    main(["create", "--keys-db", file, "--tenant", "team:key:1", "--name", "a:bomb:b"])
    capsys.readouterr()
    main(["list", "--keys-db", file])
    told = capsys.readouterr().out
    assert "team:key:1" in told
    assert "a:bomb:b" in told

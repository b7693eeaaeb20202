"""`baton store` on a folder: what is there, whether it is proven, and that nothing is left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.cli import main
from kvtransfer.store.log import BlockLog
from tests.store.blocks import BLOCK_BYTES, OTHER, block, key, opened, put


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three blocks of one model and one of another."""
    log = opened(tmp_path)
    put(log, 0, 1, 2)
    log.close()
    other = BlockLog.open(tmp_path, 64 << 20, OTHER)
    other.put(*block(7, OTHER))
    other.close()
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["store", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_ls_has_a_line_for_each_block(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "ls", "--path", path, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [row["key"] for row in rows] == [key(number).hex() for number in (0, 1, 2, 7)]
    assert rows[1]["parent"] == key(0).hex()
    assert {row["model"] for row in rows} == {"one", "two"}


def test_stats_are_by_model(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "stats", "--path", path, "--json")
    one, two = json.loads(out)
    assert (one["model"], one["blocks"], one["block_bytes"]) == ("one", 3, 3 * BLOCK_BYTES)
    assert (two["model"], two["blocks"], two["tokens"]) == ("two", 1, 16)
    assert one["disk_bytes"] >= 3 * BLOCK_BYTES
    _, out, _ = run(capsys, "stats", "--path", path)
    assert "one" in out
    assert "two" in out


def test_verify_proves_every_models_blocks(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "verify", "--path", path, "--json")
    assert status == 0
    assert [(row["proven"], row["unproven"]) for row in json.loads(out)] == [(3, 0), (1, 0)]
    assert err == ""


def test_verify_names_a_flipped_block_and_fails(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = path / "00000001.seg"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    status, _, err = run(capsys, "verify", "--path", path)
    assert status == 1
    assert key(2).hex() in err
    assert "computed again" in err


def test_clear_leaves_what_is_not_a_stores(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path / "notes.txt").write_text("mine")
    status, out, _ = run(capsys, "clear", "--path", path)
    assert status == 0
    assert "freed" in out
    assert [file.name for file in path.iterdir()] == ["notes.txt"]
    _, out, _ = run(capsys, "stats", "--path", path)
    assert "no blocks" in out


def test_the_folder_of_all_stores_is_that_of_each(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As --kv-store names it: `path` is one of its stores' here."""
    above = tmp_path.parent / f"{tmp_path.name}-above"
    (above / "tiny.store-1").mkdir(parents=True)
    path.rename(above / "store-0")
    (above / "notes.txt").write_text("mine")
    _, out, _ = run(capsys, "ls", "--path", above, "--json")
    assert len(out.splitlines()) == 4
    status, out, _ = run(capsys, "verify", "--path", above, "--json")
    assert (status, [row["proven"] for row in json.loads(out)]) == (0, [3, 1])
    status, out, _ = run(capsys, "clear", "--path", above)
    assert status == 0
    assert [it.name for it in above.iterdir()] == ["notes.txt"]


def test_one_store_in_use_keeps_all_from_being_cleared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("store-0", "store-1"):
        (tmp_path / name).mkdir()
        log = opened(tmp_path / name)
        put(log, 0, 1, 2)
        log.close()
    log = opened(tmp_path / "store-1")
    status, _, err = run(capsys, "clear", "--path", tmp_path)
    assert status == 2
    assert f"{tmp_path / 'store-1'} is used by process" in err
    assert (tmp_path / "store-0" / "00000001.seg").exists()
    log.close()


def test_a_folder_in_use_is_refused(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = opened(path)
    status, _, err = run(capsys, "verify", "--path", path)
    assert status == 2
    assert f"{path} is used by process" in err
    log.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "ls|stats|verify|clear"),
        (("ls",), "--path"),
        (("ls", "--path", "/nowhere/at/all"), "--path: there is no folder /nowhere/at/all"),
    ],
)
def test_what_is_missing_is_named(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert words in err

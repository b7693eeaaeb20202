"""The commit in a result's stamp: the one that was measured, or none."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from benchmarks.environment import RESULTS, commit_of

if TYPE_CHECKING:
    from pathlib import Path


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one committed file."""
    git(tmp_path, "init", "-q")
    (tmp_path / "measured.py").write_text("1\n", encoding="utf-8")
    git(tmp_path, "add", "measured.py")
    git(tmp_path, "commit", "-q", "-m", "one")
    return tmp_path


def test_a_committed_tree_is_named_by_its_commit(checkout: Path) -> None:
    commit = commit_of(checkout / "measured.py")
    assert commit is not None
    assert git(checkout, "rev-parse", "HEAD").startswith(commit)


def test_the_result_of_the_measurement_before_changes_nothing(checkout: Path) -> None:
    results = checkout / RESULTS
    results.mkdir(parents=True)
    (results / "one.json").write_text("1\n", encoding="utf-8")
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "two")
    before = commit_of(checkout / "measured.py")
    (results / "one.json").write_text("2\n", encoding="utf-8")
    assert commit_of(checkout / "measured.py") == before


def test_a_changed_tree_is_not_passed_off_as_its_commit(checkout: Path) -> None:
    before = commit_of(checkout / "measured.py")
    (checkout / "measured.py").write_text("2\n", encoding="utf-8")
    assert commit_of(checkout / "measured.py") == f"{before}-dirty"


def test_what_is_installed_in_somebody_elses_checkout_has_no_commit(checkout: Path) -> None:
    installed = checkout / ".venv" / "environment.py"
    installed.parent.mkdir()
    installed.write_text("", encoding="utf-8")
    assert commit_of(installed) is None


def test_no_checkout_has_no_commit(tmp_path: Path) -> None:
    assert commit_of(tmp_path / "measured.py") is None

"""Which values `make test` tries, over a real run of pytest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.marks import deep

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

@pytest.fixture(scope="module", params=["a", "b"])
def server(request):
    return request.param

@pytest.mark.parametrize("number", range(10))
def test_many(number): ...

@pytest.mark.every_value
@pytest.mark.parametrize("number", range(10))
def test_all(number): ...

@pytest.mark.parametrize("number", range(3))
def test_few(number): ...

@pytest.mark.parametrize("number", range(3))
def test_on_servers(server, number): ...

@pytest.mark.parametrize("number", [1, *(pytest.param(i, marks=pytest.mark.deep) for i in range(2, 9))])
def test_deep_ones(number): ...
"""
TRIED = {
    *(f"test_many[{number}]" for number in (0, 3, 6, 9)),
    *(f"test_all[{number}]" for number in range(10)),
    *(f"test_few[{number}]" for number in range(3)),
    *(f"test_on_servers[{of}]" for of in ("a-0", "a-2", "b-0", "b-2")),
    "test_deep_ones[1]",
}
NUM_CASES = 10 + 10 + 3 + 6 + 8


def chosen(directory: Path, expression: str) -> list[str]:
    """Names of the tests that are run."""
    (directory / "test_values.py").write_text(TESTS)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml")),
            *("-p", "tests.sampling", "-p", "no:schemathesis", "-p", "no:hypothesispytest"),
            *("-p", "no:cacheprovider", "--rootdir", str(directory), "--collect-only"),
            *("-m", expression, str(directory)),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return [line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line]


@pytest.mark.parametrize(
    ("expression", "count"), [("not deep", len(TRIED)), ("not gpu", NUM_CASES), deep("", NUM_CASES)]
)
def test_a_few_values_of_many_are_tried_and_all_for_who_asks(
    tmp_path: Path, expression: str, count: int
) -> None:
    names = chosen(tmp_path, expression)
    assert len(names) == len(set(names)) == count
    assert set(names) >= TRIED

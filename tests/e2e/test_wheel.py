"""What is in a wheel: enough for a product verb, away from the checkout and without benchmarks' result files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
PLAN = ["plan", "--requests", "40", "--rate", "1", "--input-len", "300", "--output-len", "10"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the wheel of this tree, unpacked as pip does."""
    source = tmp_path_factory.mktemp("source")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    for name in names:  # not the tree itself: a build leaves files behind
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    wheels, target = source / "wheels", tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), "."]
    subprocess.run([*pip, *build], cwd=source, check=True)
    [wheel] = wheels.iterdir()
    install = ["install", "--no-deps", "--no-compile", "--target", str(target), str(wheel)]
    subprocess.run([*pip, *install], cwd=source, check=True)
    return target


def test_plan_works_from_a_wheel(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    code = "import deploy.cli, sys; print(deploy.cli.__file__); sys.exit(deploy.cli.main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *PLAN, "--slo", "ttft:5000", "tpot:100", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, _, plan = done.stdout.partition("\n")
    assert Path(where).is_relative_to(installed)
    assert json.loads(plan)["recommended"]["attained"] >= 0.9

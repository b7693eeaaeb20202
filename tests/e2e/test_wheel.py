"""What is in a wheel, installed into an environment of its own and used from an empty folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.e2e.server import Server

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("model")]
ROOT = Path(__file__).parents[2]
PLAN = ["plan", "--requests", "40", "--rate", "1", "--input-len", "300", "--output-len", "10"]
SLO = ["--slo", "ttft:5000", "tpot:100"]
OTHERS = ("engine", "deploy", "worker", "protocol", "benchmarks")


@dataclass(frozen=True)
class Installed:
    """An environment that has the wheel, and finds what Baton needs where the tests find it."""

    python: Path
    packages: Path

    def baton(self, *words: str, where: Path) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        return subprocess.run(
            [str(self.python.parent / "baton"), *words],
            cwd=where,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    source, home = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("home")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    for name in names:  # not the tree itself: a build leaves files behind
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(source / "wheels"), "."]
    subprocess.run([*pip, *build], cwd=source, check=True)
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    # A folder that a path file names is searched, but path files inside it are not read: the checkout stays out.
    (packages / "zz-needed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    [wheel] = (source / "wheels").iterdir()
    pip += ["--python", str(python), "install", "--no-deps", "--no-compile", str(wheel)]
    subprocess.run(pip, cwd=source, check=True)
    return Installed(python, packages)


def test_one_name_lands_in_site_packages(installed: Installed) -> None:
    found = {path.name for path in installed.packages.iterdir()} - {"zz-needed.pth"}
    assert {name.partition("-")[0] for name in found} == {"baton_serve", "baton_serve.pth"}
    [information] = installed.packages.glob("baton_serve-*.dist-info")
    assert (information / "top_level.txt").read_text(encoding="utf-8").split() == ["baton_serve"]


def test_plan_works_from_a_wheel(installed: Installed, tmp_path: Path) -> None:
    done = installed.baton(*PLAN, *SLO, "--json", where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["recommended"]["attained"] >= 0.9


def test_a_simulated_cluster_works_from_a_wheel(installed: Installed, tmp_path: Path) -> None:
    done = installed.baton("bench", "cluster", *PLAN[1:], *SLO, "--fixed", "1p1d", where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["best_fixed"] == "fixed 1p1d"


@pytest.mark.deep
def test_packages_of_others_under_our_names_are_neither_taken_nor_touched(
    installed: Installed, tmp_path: Path
) -> None:
    """As a distribution that owns `engine` would have installed them, before or after ours."""
    theirs = [installed.packages / name for name in OTHERS]
    try:
        for folder in theirs:
            folder.mkdir()
            (folder / "__init__.py").write_text("raise AssertionError('not ours')\n")
        done = installed.baton(*PLAN, *SLO, where=tmp_path)
        assert done.returncode == 0, done.stderr
        with Server("--pd", "1p1d", program=(str(installed.python.parent / "baton"),)) as server:
            answer = server.complete(prompt="The capital of France is", max_tokens=4)
        assert answer["usage"]["completion_tokens"] == 4
    finally:
        for folder in theirs:
            shutil.rmtree(folder)


def test_the_module_is_the_command(installed: Installed, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(installed.python), "-m", "baton_serve", "version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == installed.baton("version", where=tmp_path).stdout


@pytest.mark.parametrize("what", ["ray", "aws", "kuberay", "systemd", "grafana"])
def test_files_to_run_baton_with_are_in_a_wheel(
    installed: Installed, tmp_path: Path, what: str
) -> None:
    done = installed.baton("init", what, where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / line).stat().st_size for line in done.stdout.splitlines())
    assert installed.baton("init", what, where=tmp_path).returncode == 2


def test_what_is_installed_can_be_installed_elsewhere(installed: Installed, tmp_path: Path) -> None:
    """`baton init ray` writes the wheel that its hosts install."""
    installed.baton("init", "ray", where=tmp_path)
    [wheel] = (tmp_path / "dist").iterdir()
    cluster = yaml.safe_load((tmp_path / "cluster.yaml").read_text(encoding="utf-8"))
    assert cluster["file_mounts"][f"~/baton/{wheel.name}"] == f"dist/{wheel.name}"
    assert any(wheel.name in line for line in cluster["setup_commands"])
    home = tmp_path / "home"
    venv.create(home, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    pip += ["--python", str(home / "bin" / "python"), "install", "--no-deps", "--no-compile"]
    subprocess.run([*pip, str(wheel)], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    for name in ("baton_serve", "baton_serve.pth"):
        assert _contents(packages / name) == _contents(installed.packages / name)
    assert (home / "bin" / "baton").exists()


def _contents(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {path.name: path.read_bytes()}
    found = [one for one in path.rglob("*") if one.is_file() and one.suffix != ".pyc"]
    return {str(one.relative_to(path)): one.read_bytes() for one in found}

"""`baton init`: the files it writes from a checkout, and those it does not overwrite."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.cli import main
from deploy.config.serve_config import read_file

ROOT = Path(__file__).parents[4]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("ray", {"cluster.yaml", "constraints.txt"}),
        ("aws", {"cluster.yaml", "constraints.txt"}),
        (
            "kuberay",
            {"Dockerfile", "Dockerfile.dockerignore", "raycluster.yaml", "coordinator.yaml"},
        ),
        ("systemd", {"baton.service", "baton.yaml"}),
        ("grafana", {"prometheus.yml", "rules.yml", "grafana/dashboards/baton.json"}),
    ],
)
def test_files_are_written_and_told(what, expected, tmp_path, capsys) -> None:
    folder = tmp_path / "new" / "folder"
    assert main(["init", what, str(folder)]) == 0
    assert files(folder) >= expected
    told = capsys.readouterr()
    assert {str(Path(line).relative_to(folder)) for line in told.out.splitlines()} == files(folder)
    assert "next: " in told.err


def test_nothing_is_overwritten_unasked(tmp_path, capsys) -> None:
    (tmp_path / "baton.yaml").write_text("mine")
    assert main(["init", "systemd", str(tmp_path)]) == 2
    assert "baton.yaml would be overwritten; give --force" in capsys.readouterr().err
    assert files(tmp_path) == {"baton.yaml"}
    assert (tmp_path / "baton.yaml").read_text() == "mine"


def test_force_overwrites(tmp_path) -> None:
    (tmp_path / "baton.yaml").write_text("mine")
    assert main(["init", "systemd", str(tmp_path), "--force"]) == 0
    assert "mine" not in (tmp_path / "baton.yaml").read_text()


def test_a_folder_that_cannot_be_made_is_told(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main(["init", "ray", str(tmp_path / "file" / "folder")]) == 1
    assert "init: cannot write" in capsys.readouterr().err


def test_what_is_unknown_is_refused(capsys) -> None:
    assert main(["init", "nomad"]) == 2
    assert "nomad" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["ray", "aws"])
def test_a_cluster_file_finds_the_checkout_from_anywhere(what, tmp_path) -> None:
    main(["init", what, str(tmp_path)])
    mounts = yaml.safe_load((tmp_path / "cluster.yaml").read_text())["file_mounts"]
    sources = [Path(mounts[name]) for name in mounts if name.startswith("~/baton/")]
    assert len(sources) > 10
    assert all(path.is_absolute() and path.exists() for path in sources)


def test_the_service_runs_the_baton_of_this_environment(tmp_path) -> None:
    main(["init", "systemd", str(tmp_path)])
    unit = (tmp_path / "baton.service").read_text()
    baton = Path(sys.executable).parent / "baton"
    assert f"ExecStart={baton} serve --config /etc/baton/baton.yaml\n" in unit
    assert read_file(tmp_path / "baton.yaml")["pd"] == "1p1d"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path) -> None:
    main(["init", "systemd", str(tmp_path)])
    unit = tmp_path / "baton.service"
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "baton.service" in line]
    assert (done.returncode, ours) == (0, [])


def test_systemd_waits_longer_than_running_answers_may_take(tmp_path) -> None:
    main(["init", "systemd", str(tmp_path)])
    unit = (tmp_path / "baton.service").read_text().splitlines()
    [wait] = [line for line in unit if line.startswith("TimeoutStopSec=")]
    [stop] = [line for line in unit if line.startswith("ExecStop=")]
    assert "drain --all --timeout 60" in stop
    assert int(wait.partition("=")[2]) >= 60 + 30


def test_a_build_sees_the_wheel_alone(tmp_path) -> None:
    beside = ROOT / "deploy" / "ray" / "kuberay" / "Dockerfile.dockerignore"
    lines = beside.read_text().splitlines()
    assert lines[1:] == ["*", "!dist/*.whl", "!constraints.txt"]
    assert beside.read_text() == (ROOT / ".dockerignore").read_text()

"""`baton apply`: what of a file differs from what runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.cli import main
from deploy.commands.apply import autoscale_wish, check_models, pool_wish, told
from deploy.config.serve_config import ServeConfig, read_file, resolve
from protocol.errors import ConfigError

OFF = {"mode": "off", "ttft_ms": None, "tpot_ms": None, "goal": None}
OFF |= {"prefill": None, "decode": None, "total": None, "idle_s": None}
AUTO = "pd: 1p2d\nautoscale: [prefill=1..4, decode=2..8]\nslo: [ttft:500, tpot:50, goal:0.95]\n"
WHOLE = {
    "ttft_ms": 500.0,
    "tpot_ms": 50.0,
    "goal": 0.95,
    "prefill": [1, 4],
    "decode": [2, 8],
    "total": 12,
    "idle_s": 300.0,
    "mode": "on",
}


def read(tmp_path: Path, text: str) -> tuple[ServeConfig, dict[str, object]]:
    file = tmp_path / "baton.yaml"
    file.write_text(text, encoding="utf-8")
    return resolve({}, {}, file).config, read_file(file)


@pytest.mark.parametrize(("text", "models"), [("models: [a, b]\n", ()), ("pd: 1p1d\n", ("a", "b"))])
def test_models_are_refused_by_name_wherever_there_are_several(
    tmp_path: Path, text: str, models: tuple[str, ...]
) -> None:
    _, named = read(tmp_path, text)
    with pytest.raises(ConfigError, match=r"baton\.yaml: models: .* baton scale --model"):
        check_models(tmp_path / "baton.yaml", named, {"models": dict.fromkeys(models)})


def test_pools_that_differ_are_wanted(tmp_path: Path) -> None:
    config, named = read(tmp_path, "pd: 2p3d\n")
    assert pool_wish(config, named, {"prefill": 2, "decode": 1}) == {"decode": 3}
    assert pool_wish(config, named, {"prefill": 2, "decode": 3}) == {}


def test_a_file_that_says_nothing_of_pools_leaves_them(tmp_path: Path) -> None:
    config, named = read(tmp_path, "port: 9000\n")
    assert pool_wish(config, named, {"prefill": 7, "decode": 7}) == {}
    assert autoscale_wish(config, OFF) == {}


def test_an_autoscaler_is_made_what_the_file_says_once(tmp_path: Path) -> None:
    config, _ = read(tmp_path, AUTO)
    assert autoscale_wish(config, OFF) == WHOLE
    assert autoscale_wish(config, WHOLE) == {}
    assert autoscale_wish(config, {**WHOLE, "goal": 0.9}) == {"goal": 0.95}


def test_an_autoscaler_that_only_tells_is_one_that_the_file_wants_so(tmp_path: Path) -> None:
    config, _ = read(tmp_path, AUTO + "autoscale-dry-run: true\n")
    assert autoscale_wish(config, WHOLE) == {"mode": "dry-run"}
    assert autoscale_wish(config, {**WHOLE, "mode": "dry-run"}) == {}


def test_a_file_without_an_autoscaler_ends_it(tmp_path: Path) -> None:
    config, _ = read(tmp_path, "pd: 1p1d\n")
    assert autoscale_wish(config, WHOLE) == {"mode": "off"}


def test_a_change_is_told_with_what_was() -> None:
    assert told({"decode": 3}, {"decode": 1}) == ["decode: 1 → 3"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("pdd: 1p1d\n", "pdd"), ("pd: 0p0d\n", "pd"), ("slo: [goal:2]\n", "goal"), ("[1]\n", "lines")],
)
def test_a_wrong_file_is_refused_before_anything_is_asked(text, said, tmp_path, capsys) -> None:
    (tmp_path / "b.yaml").write_text(text)
    assert main(["apply", "-f", str(tmp_path / "b.yaml"), "--url", "http://127.0.0.1:9"]) == 2
    assert said in capsys.readouterr().err


def test_no_file_is_told(tmp_path, capsys) -> None:
    assert main(["apply", "-f", str(tmp_path / "absent.yaml")]) == 2
    assert "there is no file" in capsys.readouterr().err

"""Several models, as they are named on the command line and in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploy.config.models import KEY_LENGTH, check_names, keys_of
from deploy.config.serve_config import resolve
from deploy.config.topology import Pools
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from deploy.config.serve_config import Resolved


def of_file(tmp_path: Path, text: str, **command_line: str) -> Resolved:
    file = tmp_path / "baton.yaml"
    file.write_text(text)
    return resolve(command_line, {}, file)


def test_one_model_is_what_it_was() -> None:
    resolved = resolve({"model": "a"}, {})
    assert resolved.models == (resolved.config,)
    assert keys_of(["a"]) == [""]


def test_several_have_their_own_options_and_share_the_others(tmp_path: Path) -> None:
    text = """
port: 9000
kv_cache_memory: 64MiB
models:
  - a
  - model: b
    served_model_name: [bee, bee-chat]
    pd: 2p1d
    kv-cache-memory: 1GiB
    keep-alive: 1h
"""
    first, second = of_file(tmp_path, text).models
    assert (first.model, first.pools, first.kv_cache_memory) == ("a", Pools(1, 1), 64 << 20)
    assert second.served_model_name == ("bee", "bee-chat")
    assert (second.pools, second.kv_cache_memory, second.keep_alive) == (Pools(2, 1), 1 << 30, 3600)
    assert first.port == second.port == 9000


def test_the_command_line_wins_over_the_files_models(tmp_path: Path) -> None:
    text = "models: [a, b]"
    assert [one.model for one in of_file(tmp_path, text).models] == ["a", "b"]
    assert [one.model for one in of_file(tmp_path, text, model="c").models] == ["c"]
    file = tmp_path / "baton.yaml"
    assert [one.model for one in resolve({}, {}, file, ["d", "e"]).models] == ["d", "e"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("models: a", "models"),
        ("models: []", "models"),
        ("models: [1]", "models[0]"),
        ("models: [{pd: 1p1d}]", "models[0]"),
        ("models: [{model: a, port: 1}]", "'port'"),
        ("models: [{model: a, pd: many}]", "models[0]: pd"),
        ("models: [a, {model: b, pd: 1p0d}]", "decode"),
        ("models: [a, b]\nserved-model-name: [x]", "--served-model-name"),
        ("models: [a, b]\nlauncher: ray", "--launcher ray"),
        ("models: [a, b]\nautoscale: [decode=1..2]", "--autoscale"),
        ("models: [a, b]\ndevice: cuda", "--device cuda"),
        ("max-loaded-models: 1\nlauncher: ray", "--launcher ray"),
        ("keep-alive: soon", "keep-alive"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        of_file(tmp_path, text)
    assert named in str(refused.value)


def test_keys_are_short_and_all_different() -> None:
    names = ["org/Tiny-Model-7B", "tiny-model-8b", "Tiny Model", "§", "§§", "x"]
    keys = keys_of(names)
    assert len(set(keys)) == len(names)
    assert all(key and len(key) <= KEY_LENGTH and "." not in key for key in keys)


def test_two_models_of_one_name_are_refused() -> None:
    check_names([("a", "b"), ("c",)])
    with pytest.raises(ConfigError, match="'b'"):
        check_names([("a", "b"), ("b",)])

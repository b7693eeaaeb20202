"""Several models, as they are named on the command line and in a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deploy.config.described import describe
from deploy.config.models import (
    KEY_LENGTH,
    Version,
    check_names,
    claimed,
    keys_of,
    weights_of,
)
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


def test_a_revision_is_called_what_is_written(tmp_path: Path) -> None:
    text = "models: [{name: a, revisions: [{revision: 1.10, model: x, weight: 0.50}, {revision: 010, model: y}]}]"
    versions = [one.version for one in of_file(tmp_path, text).models]
    assert [(it.revision, it.weight) for it in versions if it] == [("1.10", 0.5), ("010", 0.0)]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("models: a", "models"),
        ("models: [{model: a, max_model_len: 1, max-model-len: 2}]", "models[0]"),
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


REVISIONS = """
models:
  - name: [chat, talk]
    pd: 0p1d
    revisions:
      - {revision: v1, model: a, weight: 90}
      - {revision: 2, model: b, weight: 10, max-num-seqs: 4}
  - c
"""


def test_revisions_share_what_the_model_has_and_are_models_of_their_own(tmp_path: Path) -> None:
    first, second, plain = of_file(tmp_path, REVISIONS).models
    assert first.version == Version(("chat", "talk"), "v1", 90)
    assert second.version == Version(("chat", "talk"), "2", 10)
    assert (first.model, first.served_model_name, first.pools) == ("a", ("chat@v1",), Pools(0, 1))
    assert (second.model, second.max_num_seqs) == ("b", 4)
    assert plain.version is None


def test_revisions_are_named_on_the_command_line_too() -> None:
    words = ["chat@v1:90=./a", "chat@v2:10=org/b", "c"]
    first, second, plain = resolve({}, {}, None, words).models
    assert first.version == Version(("chat",), "v1", 90)
    assert second.version == Version(("chat",), "v2", 10)
    assert (first.model, second.model, plain.model) == ("./a", "org/b", "c")


@pytest.mark.parametrize(
    ("given", "weights"),
    [([None, None], [100, 0]), ([None, 5], [0, 5]), ([1, 2], [1, 2])],
)
def test_weights_that_are_left_out(given: list[float | None], weights: list[float]) -> None:
    assert weights_of(given, "models[0]") == weights


def test_the_printed_configuration_has_its_revisions(tmp_path: Path) -> None:
    printed = describe(of_file(tmp_path, REVISIONS))
    again = of_file(tmp_path, printed).models
    assert [one.version for one in again] == [
        Version(("chat", "talk"), "v1", 90),
        Version(("chat", "talk"), "2", 10),
        None,
    ]


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("{revisions: [{revision: v1, model: a}]}", "`name:`"),
        ("{name: x, revisions: []}", "models[0].revisions"),
        ("{name: x, revisions: [a]}", "models[0].revisions[0]"),
        ("{name: x, revisions: [{model: a}]}", "revision"),
        ("{name: x, revisions: [{revision: a/b, model: a}]}", "'a/b'"),
        ("{name: x, revisions: [{revision: v1}]}", "`model:`"),
        ("{name: x, revisions: [{revision: v1, model: a, weigth: 3}]}", "did you mean 'weight'"),
        ("{name: x, revisions: [{revision: v1, model: a, weight: -1}]}", "-1"),
        ("{name: x, revisions: [{revision: v1, model: a, weight: 0}]}", "more than 0"),
        ("{name: x, revisions: [{revision: v1, model: a}, {revision: v1, model: b}]}", "x@v1"),
        ("{name: x, revisions: [{revision: v1, model: a, served-model-name: y}]}", "served-model"),
    ],
)
def test_revisions_that_cannot_be_are_refused_by_name(
    tmp_path: Path, model: str, named: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        of_file(tmp_path, f"models: [{model}]")
    assert named in str(refused.value)


def test_no_revision_has_another_models_name() -> None:
    version = Version(("a",), "v1", 1)
    check_names(claimed([(["a@v1"], version), (["a@v2"], Version(("a",), "v2", 1))]))
    with pytest.raises(ConfigError, match="'a'"):
        check_names(claimed([(["a@v1"], version), (["a"], None)]))

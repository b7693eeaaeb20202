"""`baton serve` and a model that cannot be served: one sentence that names it, exit status 2, within 5 seconds, whatever
is wrong with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.patience import PATIENCE_S, in_time
from tests.unit.engine.checkpoints.test_bad_files import (
    BAD_GGUF,
    BAD_HEADERS,
    CONFIG,
    DEEP,
    raw_file,
    write_model,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.e2e
LIMIT_S = 5.0
ENDLESS = (
    "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}"
    "{% endfor %}{% endfor %}{% endfor %}"
)


def write(name: str, content: bytes | str) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        (model / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def config(**changes: Any) -> Callable[[Path], None]:
    return write("config.json", json.dumps(CONFIG | changes))


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        (model / name).unlink()
        make(model / name)

    return spoil


def large(name: str, size: int) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        with (model / name).open("r+b") as file:
            file.truncate(size)

    return spoil


def further(name: str, content: str) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        (model / "additional_chat_templates").mkdir()
        (model / "additional_chat_templates" / f"{name}.jinja").write_text(content)

    return spoil


def cut(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])


BAD: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a config cut short": ("config.json", write("config.json", '{"architectures": ["Lla')),
    "a config of 100,000 brackets": ("config.json", write("config.json", DEEP)),
    "a billion layers": ("num_hidden_layers", config(num_hidden_layers=10**9)),
    "an epsilon that is no number": ("rms_norm_eps", config(rms_norm_eps=float("nan"))),
    "no heads": ("num_attention_heads", config(num_attention_heads=0)),
    "another architecture": ("GPT2LMHeadModel", config(architectures=["GPT2LMHeadModel"])),
    "another rope": ("rope_scaling", config(rope_scaling={"type": "longrope"})),
    "weights cut short": ("model.safetensors", cut),
    "weights of another size": ("model.safetensors", large("model.safetensors", 1 << 33)),
    "tensors that overlap": (
        "model.safetensors",
        write("model.safetensors", raw_file(json.dumps(BAD_HEADERS[-3]).encode())),
    ),
    "weights that lead nowhere": (
        "model.safetensors",
        instead("model.safetensors", lambda path: path.symlink_to("/nowhere")),
    ),
    "weights that are a pipe": ("model.safetensors", instead("model.safetensors", os.mkfifo)),
    "a tokenizer without an end": (
        "tokenizer.json",
        instead("tokenizer.json", lambda path: path.symlink_to("/dev/zero")),
    ),
    "a tokenizer of 8 GiB": ("tokenizer.json", large("tokenizer.json", 1 << 33)),
    "no tokenizer": ("tokenizer.json", write("tokenizer.json", "none")),
    "an end that is a word": (
        "generation_config.json",
        write("generation_config.json", '{"eos_token_id": "x"}'),
    ),
    "a template that is none": (
        "chat_template.jinja",
        write("chat_template.jinja", "{% for m in messages %}"),
    ),
    "a template without an end": ("chat_template.jinja", write("chat_template.jinja", ENDLESS)),
    "a template that takes all memory": (
        "chat_template.jinja",
        write("chat_template.jinja", "{{ 'a' * 10**9 }}"),
    ),
    "a template of 100,000 brackets": (
        "chat_template.jinja",
        write("chat_template.jinja", "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}"),
    ),
    "a further template that is none": (
        "rag.jinja",
        further("rag", "{{"),
    ),
    "a template in the settings that is none": (
        "tokenizer_config.json",
        write("tokenizer_config.json", '{"chat_template": "{{"}'),
    ),
    "settings that lead nowhere": (
        "tokenizer_config.json",
        lambda model: (model / "tokenizer_config.json").symlink_to("/nowhere"),
    ),
    "a generation_config that is a directory": (
        "generation_config.json",
        lambda model: (model / "generation_config.json").mkdir(),
    ),
    "beams": ("num_beams", write("generation_config.json", '{"num_beams": 4}')),
    "a template in a list": (
        "template",
        write("tokenizer_config.json", '{"chat_template": [{"name": "default"}]}'),
    ),
}


def serve(model: Path, cache: Path, *more: str) -> tuple[int, str, float]:
    """Exit status, what was said, and how long it took."""
    command = [sys.executable, "-m", "deploy.cli", "serve", str(model), "--port", "0", *more]
    environment = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(cache), "HOME": str(cache)}
    start_s = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=PATIENCE_S, env=environment
    )
    return done.returncode, done.stderr, time.perf_counter() - start_s


def check(model: Path, cache: Path, named: str, *more: str) -> None:

    def attempt() -> float:
        status, said, took_s = serve(model, cache, *more)
        assert status == 2, said
        assert said.startswith("baton: error: ")
        assert said.count("\n") == 1, said
        assert named in said
        return took_s

    in_time(attempt, LIMIT_S)


@pytest.mark.parametrize("what", BAD)
def test_a_bad_directory_is_refused_at_once(tmp_path: Path, what: str) -> None:
    named, spoil = BAD[what]
    write_model(tmp_path / "model")
    spoil(tmp_path / "model")
    check(tmp_path / "model", tmp_path, named)


@pytest.mark.parametrize("what", ["2^60 strings", "an unknown architecture", "overlapping"])
def test_a_bad_gguf_is_refused_at_once(tmp_path: Path, what: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(BAD_GGUF[what])
    check(path, tmp_path, str(path))


def test_what_is_no_model_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check(tmp_path / "empty", tmp_path, "config.json")
    check(tmp_path / "absent", tmp_path, "absent")


@pytest.mark.deep
def test_a_template_of_ones_own_is_refused_and_makes_good_for_a_bad_one(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    check(tmp_path / "model", tmp_path, "--chat-template", "--chat-template", "{% for %}{{ x }}")
    (tmp_path / "model" / "chat_template.jinja").write_text("{% for %}")
    check(tmp_path / "model", tmp_path, "template")
    good = ("--chat-template", "{{ messages[0].content }}", "--max-model-len", "9999")
    status, said, _ = serve(tmp_path / "model", tmp_path, *good)
    assert status == 2
    assert "--max-model-len" in said, "the template is past"
    assert "template" not in said

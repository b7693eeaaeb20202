"""Files that are damaged or meant to harm: one sentence that names the file and what is wrong in it, at once."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoints.fields import reason
from engine.checkpoints.gguf_file import GgufFile
from engine.checkpoints.hugging_face_config import parse_config
from engine.checkpoints.prepared import prepared_directory
from engine.checkpoints.safetensors_file import read_safetensors
from engine.checkpoints.source import open_checkpoint
from engine.checkpoints.weight_shapes import source_shapes
from protocol.errors import ConfigError
from tests.model_files import write_safetensors, write_tokenizer

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
}
DEEP = "[" * 100_000 + "]" * 100_000


def write_model(directory: Path, extra: dict[str, torch.Tensor] | None = None) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    tensors = {name: torch.zeros(shape) for name, shape in source_shapes(parse_config(CONFIG))}
    write_safetensors(directory / "model.safetensors", tensors | (extra or {}))
    write_tokenizer(directory, 32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    return tmp_path / "model"


def refused(source: Path) -> str:
    """The sentence; within the time that a person waits, all of it the processor's."""
    start_s = time.process_time()
    with pytest.raises(ConfigError) as caught:
        open_checkpoint(source)
    assert time.process_time() - start_s < 5
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


def test_the_model_that_is_spoilt_below_is_good(model: Path) -> None:
    assert open_checkpoint(model).warnings == []


JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
)


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize(
    "text",
    ["", "{", "nul", "[1]", DEEP, '{"a": ' + DEEP + "}", "\udcff", '{"a": 1, "a": 1, "b"'],
    ids=range(8),
)
def test_what_is_no_json_object_is_named(model: Path, name: str, text: str) -> None:
    (model / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert name in refused(model)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"\xff{}", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        (b'{"a": 1, "a": 1}', "'a' is there twice"),
        (b'{"\x1b[2J": 1, "\x1b[2J": 1}', "Invalid control character at: line 1 column 3 (char 2)"),
    ],
)
def test_the_reason_is_told_whole(model: Path, raw: bytes, why: str) -> None:
    (model / "config.json").write_bytes(raw)
    assert refused(model) == f"{model / 'config.json'} is not a JSON object: {why}"


def test_a_reason_has_nothing_that_a_terminal_would_obey() -> None:
    assert reason(ValueError("'\x1b[2J' is \u202e\n wrong")) == r"'\x1b[2J' is \u202e"


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("tokenizer_config.json", {"chat_template": 5}, "chat_template"),
        ("tokenizer_config.json", {"chat_template": [{"name": "x"}]}, "template"),
        ("tokenizer_config.json", {"chat_template": [7]}, "name"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": 5}}, "tokenizer"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}, "tokenizer"),
        ("model.safetensors.index.json", {"weight_map": 5}, "weight_map"),
        ("model.safetensors.index.json", {"weight_map": {}}, "weight_map"),
        ("model.safetensors.index.json", {"weight_map": {"a": "../x"}}, "weight_map"),
        ("model.safetensors.index.json", {"weight_map": {"a": "x\0y"}}, "weight_map"),
        ("model.safetensors.index.json", {"weight_map": {"a": 7}}, "weight_map"),
        ("model.safetensors.index.json", {"weight_map": {"a": ""}}, "model"),
        ("model.safetensors.index.json", {"weight_map": {"a": "x" * 300}}, "weight_map"),
        ("model.safetensors.index.json", {"weight_map": {"a": "gone.safetensors"}}, "gone"),
    ],
    ids=str,
)
def test_the_field_is_named(model: Path, name: str, content: Any, named: str) -> None:
    if "index" in name:
        (model / "model.safetensors").unlink()
    (model / name).write_text(json.dumps(content))
    assert named in refused(model)


FILES = ("config.json", "tokenizer.json", "model.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_what_never_ends_or_waits_for_a_writer_is_no_file(model: Path, name: str) -> None:
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        (model / name).unlink()
        make(model / name)
        assert "regular file" in refused(model)


TEXTS = ("generation_config.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer.json")


def as_directory(path: Path) -> None:
    path.mkdir()
    (path / "x").write_text("{}")


KINDS = {
    "a directory": as_directory,
    "a link to nowhere": lambda path: path.symlink_to("/nowhere/at/all"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a pipe": os.mkfifo,
    "no text": lambda path: path.write_bytes("{}".encode("utf-16")),
    "a zip": lambda path: path.write_bytes(b"PK\x03\x04\xff" + bytes(range(256))),
    "a pickle": lambda path: path.write_bytes(b"\x80\x04\x95" + bytes(range(256))),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*TEXTS, "config.json", "model.safetensors"])
def test_what_stands_in_place_of_a_file_is_named(model: Path, name: str, kind: str) -> None:
    (model / name).unlink(missing_ok=True)
    KINDS[kind](model / name)
    assert name in refused(model)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_place_of_a_shard_an_index_or_a_gguf_is_named(
    model: Path, kind: str
) -> None:
    (model / "model.safetensors").unlink()
    index = model / "model.safetensors.index.json"
    KINDS[kind](index)
    assert index.name in refused(model)
    shutil.rmtree(index) if index.is_dir() else index.unlink()
    index.write_text('{"weight_map": {"lm_head.weight": "a.safetensors"}}')
    KINDS[kind](model / "a.safetensors")
    assert "a.safetensors" in refused(model)
    KINDS[kind](model / "m.gguf")
    assert "m.gguf" in refused(model / "m.gguf") or kind == "a directory"


def test_weights_of_the_old_kind_alone_are_to_be_converted(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "convert it first" in refused(model)


def test_a_gguf_that_is_a_pipe_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    assert "regular file" in refused(tmp_path / "model.gguf")


def test_a_link_that_leads_nowhere_has_a_place_in_the_cache(model: Path, tmp_path: Path) -> None:
    before = prepared_directory(model, tmp_path, "float32")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to("/nowhere")
    assert prepared_directory(model, tmp_path, "float32") != before
    assert "model.safetensors" in refused(model)


def test_a_template_that_is_no_text_is_named(model: Path) -> None:
    (model / "chat_template.jinja").write_bytes(b"\xff\xfe")
    assert "chat_template.jinja is not UTF-8" in refused(model)


def header(**entry: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | entry}


def raw_file(header_text: bytes, data: bytes = bytes(8)) -> bytes:
    return len(header_text).to_bytes(8, "little") + header_text + data


BAD_HEADERS: list[Any] = [
    header(data_offsets=[0, 1 << 40]),
    header(data_offsets=[-4, 4]),
    header(data_offsets=[8, 0]),
    header(data_offsets=[0, 4]),
    header(data_offsets=[0.0, 8.0]),
    header(data_offsets=[0]),
    header(data_offsets="08"),
    header(data_offsets=None),
    header(shape=[-2]),
    header(shape=[2.0]),
    header(shape=[True, 2]),
    header(shape=[1 << 62, 1 << 62]),
    header(shape=[2] * 1000),
    header(shape="2"),
    header(shape=[[2]]),
    header(dtype="F33"),
    header(dtype=None),
    header(dtype=["F32"]),
    {"w": 5},
    {"w": []},
    {"__metadata__": 5},
    {"a": header()["w"], "b": header()["w"]},
    {
        "a": header(shape=[1], data_offsets=[0, 4])["w"],
        "b": header(shape=[1], data_offsets=[2, 6])["w"],
    },
    {"a": header(shape=[1], data_offsets=[4, 8])["w"]},
    {},
]


@pytest.mark.parametrize("content", BAD_HEADERS, ids=lambda value: str(value)[:60])
def test_a_bad_safetensors_header_is_refused_as_the_library_refuses_it(
    tmp_path: Path, content: Any
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_file(json.dumps(content).encode()))
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        read_safetensors(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234",
        (1 << 60).to_bytes(8, "little") + b"{}",
        bytes(8),
        raw_file(b"[" * 100_000),
        raw_file(b'{"w":' * 10_000),
        raw_file(b"\xff"),
        raw_file(b'{"w": {"dtype": "F32", "shape": [2], "shape": [2], "data_offsets": [0, 8]}}'),
        raw_file(json.dumps(header()).encode())[:-1],
        raw_file(json.dumps(header()).encode()) + b"x",
    ],
    ids=range(10),
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        read_safetensors(path)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.layers.0.self_attn.q_proj.bias", torch.ones(16)),
        ("model.layers.1.mlp.up_proj.weight", torch.ones(16, 16)),
        ("model.norm.bias", torch.ones(16)),
        ("score.weight", torch.ones(1, 16)),
    ],
)
def test_a_tensor_without_use_is_named(tmp_path: Path, name: str, tensor: torch.Tensor) -> None:
    write_model(tmp_path / "model", {name: tensor})
    assert name in refused(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4)),
        ("model.rotary_emb.inv_freq", torch.ones(4)),
        ("model.layers.0.attn.masked_bias", torch.ones(1)),
        ("model.embed_tokens.position_ids", torch.ones(4)),
        ("steps", torch.ones(4, dtype=torch.int64)),
        ("mask", torch.ones(4, dtype=torch.bool)),
    ],
)
def test_what_is_derived_and_what_is_no_weight_may_be_there(
    tmp_path: Path, name: str, tensor: torch.Tensor
) -> None:
    write_model(tmp_path / "model", {name: tensor})
    assert open_checkpoint(tmp_path / "model").warnings == []


def test_a_missing_tensor_and_a_wrong_shape_are_named(model: Path) -> None:
    (model / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 4000}))
    assert "lacks the tensor model.layers.1." in refused(model)
    (model / "config.json").write_text(json.dumps(CONFIG | {"intermediate_size": 24}))
    assert "mlp" in refused(model)


def test_a_weight_of_another_type_is_named(tmp_path: Path) -> None:
    write_model(tmp_path / "model", {"model.norm.weight": torch.ones(16, dtype=torch.int64)})
    assert "model.norm.weight" in refused(tmp_path / "model")


def test_a_tensor_in_two_shards_is_named(model: Path) -> None:
    (model / "model.safetensors").rename(model / "a.safetensors")
    shutil.copy(model / "a.safetensors", model / "b.safetensors")
    index = {
        "weight_map": {"lm_head.weight": "a.safetensors", "model.norm.weight": "b.safetensors"}
    }
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "b.safetensors" in refused(model)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf_bytes(
    keys: bytes = b"",
    num_keys: int = 0,
    tensors: bytes = b"",
    num_tensors: int = 0,
    version: int = 3,
) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys) + keys + tensors


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")


def tensor(name: str = "t", dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    head = text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
    return head + struct.pack("<IQ", kind, offset)


BAD_GGUF = {
    "empty": b"",
    "mark": b"GGML" + bytes(100),
    "version 1": gguf_bytes(version=1),
    "big endian": gguf_bytes(version=3 << 24),
    "2^60 keys": gguf_bytes(num_keys=1 << 60),
    "2^60 tensors": gguf_bytes(num_tensors=1 << 60),
    "2^60 strings": gguf_bytes(text("a") + struct.pack("<IIQ", 9, 8, 1 << 60), 1),
    "2^60 numbers": gguf_bytes(text("a") + struct.pack("<IIQ", 9, 4, 1 << 60), 1),
    "2^64-1 numbers": gguf_bytes(text("a") + struct.pack("<IIQ", 9, 10, (1 << 64) - 1), 1),
    "an array of arrays": gguf_bytes(text("a") + struct.pack("<IIQ", 9, 9, 1), 1),
    "a string of 2^63": gguf_bytes(text("a") + struct.pack("<IQ", 8, 1 << 63), 1),
    "a key of 2^63": gguf_bytes(struct.pack("<Q", 1 << 63) + bytes(20), 1),
    "an unknown kind": gguf_bytes(text("a") + struct.pack("<I", 99) + bytes(20), 1),
    "no UTF-8": gguf_bytes(struct.pack("<Q", 1) + b"\xff" + bytes(20), 1),
    "twice": gguf_bytes(ARCHITECTURE + ARCHITECTURE, 2),
    "no architecture": gguf_bytes(),
    "an unknown architecture": gguf_bytes(
        text("general.architecture") + struct.pack("<I", 8) + text("gpt"), 1
    ),
    "an architecture that is a number": gguf_bytes(
        text("general.architecture") + struct.pack("<II", 4, 5), 1
    ),
    "no alignment": gguf_bytes(text("general.alignment") + struct.pack("<II", 4, 0), 1),
    "alignment 3": gguf_bytes(text("general.alignment") + struct.pack("<II", 4, 3), 1),
    "outside": gguf_bytes(ARCHITECTURE, 1, tensor(offset=1 << 63), 1) + bytes(64),
    "0 dimensions": gguf_bytes(ARCHITECTURE, 1, tensor(dims=()), 1) + bytes(64),
    "5 dimensions": gguf_bytes(ARCHITECTURE, 1, tensor(dims=(1,) * 5), 1) + bytes(64),
    "2^32 dimensions": gguf_bytes(ARCHITECTURE, 1, text("t") + bytes([255] * 40), 1),
    "a dimension of 0": gguf_bytes(ARCHITECTURE, 1, tensor(dims=(4, 0)), 1) + bytes(64),
    "2^120 elements": gguf_bytes(ARCHITECTURE, 1, tensor(dims=(1 << 60, 1 << 60)), 1) + bytes(64),
    "an unknown type": gguf_bytes(ARCHITECTURE, 1, tensor(kind=77), 1) + bytes(64),
    "half a block": gguf_bytes(ARCHITECTURE, 1, tensor(dims=(31,), kind=8), 1) + bytes(64),
    "the same name": gguf_bytes(ARCHITECTURE, 1, tensor() + tensor(offset=32), 2) + bytes(128),
    "overlapping": gguf_bytes(ARCHITECTURE, 1, tensor("a") + tensor("b", offset=8), 2) + bytes(128),
    "nothing of a model": gguf_bytes(ARCHITECTURE, 1),
}


@pytest.mark.parametrize("content", BAD_GGUF.values(), ids=BAD_GGUF)
def test_a_bad_gguf_is_one_sentence_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    assert str(path) in refused(path)


@pytest.mark.parametrize("quantity", ["size", "config"])
def test_the_child_tells_one_sentence_and_the_launcher_exits_with_2(
    model: Path, quantity: str
) -> None:
    """The whole way: command line, child, its answer."""
    if quantity == "size":
        (model / "model.safetensors").write_bytes(b"x")
    else:
        (model / "config.json").write_text(DEEP)
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "pull", str(model)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(model / "cache"), "HOME": str(model)},
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("baton: error: model: ")
    assert done.stderr.count("\n") == 1


def test_a_gguf_file_reads_as_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(
        gguf_bytes(ARCHITECTURE, 1, tensor("a") + tensor("b", offset=32), 2) + bytes(128)
    )
    assert GgufFile(path).architecture == "llama"

"""The files beside the weights, and the keys of a GGUF file, against values that nobody vouches for: a ConfigError of one
sentence that names the file, or a model whose tokenizer and template work."""

from __future__ import annotations

import copy
import json
import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.processes.prepare_main import try_texts
from engine.checkpoints.gguf_header import GgufHeader
from engine.checkpoints.source import open_checkpoint
from protocol.errors import ConfigError
from tests.property.test_checkpoint_readers import BYTES, KEEP, spoil
from tests.unit.coordinator.edge.text.chat_models import EOS_AND_BOS, TEMPLATES, TOKENIZERS
from tests.unit.engine.checkpoints.test_bad_files import write_model
from tests.unit.engine.checkpoints.test_checkpoints import write_gguf

COMMON = settings(
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize="FUZZ_AT_RANDOM" not in os.environ,
)
"""The same cases in every run; others with FUZZ_AT_RANDOM=1, which is how new ones are found."""
FEW = settings(COMMON, max_examples=120)
MANY = settings(COMMON, max_examples=2500)
WILD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-2, 400),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["BPE", "ByteLevel", "</s>", "\ud800", "a" * 2000, "(", "(a+)+$", "▁"]),
    st.sampled_from([[], {}, [[]], [None], ["x"], [["a", "b"]], {"type": "x"}, {"content": 5}]),
)
KINDS = sorted(TOKENIZERS)
NAMES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("generation_config.json", "chat_template.jinja", "additional_chat_templates/rag.jinja"),
)
EDIT = st.tuples(st.integers(0, 10**6), st.sampled_from(["set", "drop", "add"]), WILD)


@pytest.fixture(scope="module")
def good() -> Any:
    """A model with every file that there may be; its tokenizer is written for each case."""
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "good"
        write_model(model)
        (model / "additional_chat_templates").mkdir()
        (model / NAMES[5]).write_text("{{ messages[0].content }}")
        (model / NAMES[4]).write_text(TEMPLATES["chatml"])
        (model / NAMES[3]).write_text(json.dumps({"eos_token_id": [2, 3], "temperature": 0.6}))
        (model / NAMES[2]).write_text(json.dumps(EOS_AND_BOS))
        named = [{"name": "default", "template": TEMPLATES["llama-3"]}]
        specials = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": named}
        (model / NAMES[1]).write_text(json.dumps(specials))
        yield model


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, str]:
    return {kind: str(make().to_str()) for kind, make in TOKENIZERS.items()}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in it, of long lists and vocabularies only to the ends."""
    found = [path] if path else []
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    for key, item in items[:20] + items[-1:]:
        within = isinstance(item, dict | list)
        found += places(item, (*path, key)) if within else [(*path, key)]
    return found


def edited(value: Any, edits: list[tuple[int, str, Any]]) -> Any:
    for number, how, told in edits:
        new = copy.deepcopy(told)  # or a list that is added twice would hold itself
        paths = places(value)
        if not paths:
            continue
        *way, last = paths[number % len(paths)]
        holder = value
        for key in way:
            holder = holder[key]
        if how == "set":
            holder[last] = new
        elif how == "drop":
            del holder[last]
        elif isinstance(holder, dict):
            holder["type"] = new
        else:
            holder.append(new)
    return value


def check(model: Path, name: str) -> None:
    """All that a start reads of these files."""
    stage = "files"
    try:
        checkpoint = open_checkpoint(model)
        stage = "use"
        try_texts(checkpoint, str(model), is_guarded=True)
    except ConfigError as error:
        sentence = str(error)
        assert "\n" not in sentence
        assert len(sentence) < 1500
        assert stage == "use" or Path(name).name in sentence, sentence


def spoilt(good: Path, name: str, content: bytes, tokenizer: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        model = Path(root) / "m"
        shutil.copytree(good, model)
        (model / "tokenizer.json").write_text(tokenizer)
        (model / name).write_bytes(content)
        check(model, name)


def check_edits(good: Path, name: str, tokenizer: str, edits: Any) -> None:
    text = tokenizer if name == "tokenizer.json" else (good / name).read_text()
    value = edited(json.loads(text), edits)
    spoilt(good, name, json.dumps(value).encode("utf-8", "surrogatepass"), tokenizer)


def check_bytes(good: Path, name: str, tokenizer: str, edits: Any, keep: float) -> None:
    raw = tokenizer.encode() if name == "tokenizer.json" else (good / name).read_bytes()
    spoilt(good, name, spoil(raw, edits, keep), tokenizer)


JSON_NAMES = [name for name in NAMES if name.endswith(".json")]
EDITS = st.lists(EDIT, min_size=1, max_size=3)


@FEW
@given(name=st.sampled_from(JSON_NAMES), kind=st.sampled_from(KINDS), edits=EDITS)
def test_edited_files(good: Path, tokenizers: Any, name: str, kind: str, edits: Any) -> None:
    check_edits(good, name, tokenizers[kind], edits)


@FEW
@given(name=st.sampled_from(NAMES), kind=st.sampled_from(KINDS), edits=BYTES, keep=KEEP)
def test_spoilt_files(
    good: Path, tokenizers: Any, name: str, kind: str, edits: Any, keep: float
) -> None:
    check_bytes(good, name, tokenizers[kind], edits, keep)


@pytest.mark.deep
@MANY
@given(name=st.sampled_from(JSON_NAMES), kind=st.sampled_from(KINDS), edits=EDITS)
def test_many_edited_files(good: Path, tokenizers: Any, name: str, kind: str, edits: Any) -> None:
    check_edits(good, name, tokenizers[kind], edits)


@pytest.mark.deep
@MANY
@given(name=st.sampled_from(NAMES), kind=st.sampled_from(KINDS), edits=BYTES, keep=KEEP)
def test_many_spoilt_files(
    good: Path, tokenizers: Any, name: str, kind: str, edits: Any, keep: float
) -> None:
    check_bytes(good, name, tokenizers[kind], edits, keep)


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw


def typed(value: Any) -> tuple[int, bytes]:
    """A value as a GGUF file has it, with the number of its type."""
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return 11, struct.pack("<q", max(-(2**63), min(value, 2**63 - 1)))
    if isinstance(value, float):
        return 6, struct.pack("<f", value if abs(value) < 1e38 else 0.0)
    if isinstance(value, list):
        items = [typed(item) for item in value if not isinstance(item, list | dict)]
        kind = items[0][0] if items else 4
        same = [raw for one, raw in items if one == kind]
        return 9, struct.pack("<IQ", kind, len(same)) + b"".join(same)
    return 8, text(value if isinstance(value, str) else str(value))


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], bytes, int]:
    """The keys of a good file, its tensors' entries and data, and how many tensors."""
    path = tmp_path_factory.mktemp("gguf") / "good.gguf"
    write_gguf(path)
    header = GgufHeader(path)
    entries, data = b"", b""
    for tensor in header.tensors.values():
        dims = tuple(reversed(tensor.shape))
        entries += text(tensor.name) + struct.pack("<I", len(dims))
        entries += struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", tensor.kind, len(data))
        data += bytes(tensor.data) + bytes(-tensor.num_bytes % 32)
    return header.fields, entries + b"\0DATA\0" + data, len(header.tensors)


def check_keys(
    directory: Path, gguf: tuple[dict[str, Any], bytes, int], edits: list[tuple[int, str, Any]]
) -> None:
    fields, rest, count = gguf
    keys = dict(fields)
    for number, how, new in edits:
        name = sorted(keys)[number % len(keys)]
        if how == "drop":
            del keys[name]
        else:
            keys[name] = (
                [*keys[name], new] if isinstance(keys[name], list) and how == "add" else new
            )
    entries, data = rest.split(b"\0DATA\0", 1)
    head = b"GGUF" + struct.pack("<IQQ", 3, count, len(keys))
    for name, value in keys.items():
        kind, raw = typed(value)
        head += text(name) + struct.pack("<I", kind) + raw
    head += entries
    path = directory / "edited.gguf"
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    check(path, path.name)


@FEW
@given(edits=EDITS)
def test_edited_keys_of_a_gguf(tmp_path_factory: Any, gguf: Any, edits: Any) -> None:
    check_keys(tmp_path_factory.getbasetemp(), gguf, edits)


@pytest.mark.deep
@MANY
@given(edits=EDITS)
def test_many_edited_keys_of_a_gguf(tmp_path_factory: Any, gguf: Any, edits: Any) -> None:
    check_keys(tmp_path_factory.getbasetemp(), gguf, edits)


def test_the_keys_that_are_edited_make_a_model(tmp_path: Path, gguf: Any) -> None:
    check_keys(tmp_path, gguf, [])
    assert open_checkpoint(tmp_path / "edited.gguf").tensors

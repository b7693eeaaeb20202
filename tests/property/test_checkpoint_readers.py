"""Both readers against bytes that nobody vouches for: a ConfigError of one sentence, or a model; never anything else."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from engine.checkpoints.gguf_header import GgufHeader
from engine.checkpoints.hugging_face_config import parse_config
from engine.checkpoints.safetensors_file import read_safetensors
from engine.checkpoints.source import open_checkpoint
from engine.checkpoints.weight_shapes import source_shapes
from protocol.errors import ConfigError
from tests.model_files import write_safetensors, write_tokenizer
from tests.unit.engine.checkpoints.test_bad_files import CONFIG
from tests.unit.engine.checkpoints.test_checkpoints import write_gguf

if TYPE_CHECKING:
    from collections.abc import Callable

COMMON = settings(
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize="FUZZ_AT_RANDOM" not in os.environ,
)
"""The same cases in every run; others with FUZZ_AT_RANDOM=1, which is how new ones are found."""
FEW = settings(COMMON, max_examples=150)
MANY = settings(COMMON, max_examples=7000)
WILD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-2, 2**40), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
BYTES = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=9)), max_size=4
)


def spoil(raw: bytes, edits: list[tuple[float, bytes]], keep: float) -> bytes:
    """`raw` with some of its bytes written over, and cut."""
    spoilt = bytearray(raw)
    for place, written in edits:
        at = int(place * len(raw))
        spoilt[at : at + len(written)] = written
    return bytes(spoilt[: int(keep * len(spoilt)) + 1])


def refusal(read: Callable[[], Any]) -> str | None:
    """The sentence, or None for a model; any other exception is a finding."""
    try:
        read()
    except ConfigError as error:
        return str(error)
    return None


def opens(source: Path) -> None:
    def read() -> None:
        for stored in list(open_checkpoint(source).tensors.values())[:3]:
            stored.read()

    sentence = refusal(read) or ""
    assert "\n" not in sentence
    assert len(sentence) < 1000


@pytest.fixture(scope="module")
def directory() -> Any:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def gguf_bytes(directory: Path) -> bytes:
    write_gguf(directory / "good.gguf")
    return (directory / "good.gguf").read_bytes()


@pytest.fixture(scope="module")
def model(directory: Path) -> Path:
    source = directory / "model"
    source.mkdir(exist_ok=True)
    (source / "config.json").write_text(json.dumps(CONFIG))
    tensors = {name: torch.zeros(shape) for name, shape in source_shapes(parse_config(CONFIG))}
    write_safetensors(source / "model.safetensors", tensors)
    write_tokenizer(source, 32)
    return source


def check_gguf(directory: Path, raw: bytes, edits: Any, keep: float) -> None:
    head = raw[:1600]  # keys and tensor entries; the rest is values
    path = directory / "spoilt.gguf"
    path.write_bytes(
        spoil(head, edits, 1.0) + raw[1600:] if keep > 0.7 else spoil(raw, edits, keep)
    )
    opens(path)
    sentence = refusal(lambda: GgufHeader(path))
    assert sentence is None or str(path) in sentence


def check_config(changes: dict[str, Any]) -> None:
    sentence = refusal(lambda: parse_config(CONFIG | changes))
    assert sentence is None or (sentence.startswith("config.json: ") and len(sentence) < 1000)


def check_header(model: Path, entries: dict[str, Any], data: bytes) -> None:
    """Refused if, and only if, the safetensors library refuses it."""
    path = model.parent / "header.safetensors"
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    try:
        with safe_open(path, "np") as theirs:
            names = set(theirs.keys())
    except (SafetensorError, OverflowError, ValueError):
        names = None
    try:
        ours = set(read_safetensors(path))
    except ConfigError:
        ours = None
    assert ours == names


NUMBERS = st.integers(-1, 9)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BOOL", "I64", "X"]),
        "shape": st.lists(NUMBERS, max_size=2),
        "data_offsets": st.lists(NUMBERS.map(lambda n: n * 4), min_size=2, max_size=2),
    }
)
ENTRIES = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.one_of(ENTRY, ENTRY, ENTRY, WILD), max_size=3
)
FIELD = st.sampled_from(
    [
        *(name for name in CONFIG if name != "architectures"),
        *(
            "head_dim",
            "rms_norm_eps",
            "rope_theta",
            "rope_scaling",
            "rope_parameters",
            "hidden_act",
        ),
        *("sliding_window", "layer_types", "tie_word_embeddings", "attention_bias", "mlp_bias"),
        *("model_type", "quantization_config", "partial_rotary_factor", "bos_token_id"),
    ]
)
ROPE_KEYS = (
    "rope_type",
    "type",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "mscale",
)
ROPE = st.dictionaries(
    st.sampled_from(ROPE_KEYS),
    st.one_of(WILD, st.sampled_from(["yarn", "llama3", "linear"]), st.floats(-1, 10)),
    max_size=6,
)
CHANGES = st.dictionaries(FIELD, st.one_of(WILD, ROPE), max_size=4)
KEEP = st.floats(0, 1)


@FEW
@given(edits=BYTES, keep=KEEP)
def test_a_spoilt_gguf(directory: Path, gguf_bytes: bytes, edits: Any, keep: float) -> None:
    check_gguf(directory, gguf_bytes, edits, keep)


@FEW
@given(changes=CHANGES)
def test_a_spoilt_config(changes: dict[str, Any]) -> None:
    check_config(changes)


@FEW
@given(entries=ENTRIES, data=st.sampled_from([b"", bytes(4), bytes(8), bytes(16)]))
def test_a_safetensors_header_is_good_exactly_when_the_library_reads_it(
    model: Path, entries: dict[str, Any], data: bytes
) -> None:
    check_header(model, entries, data)


@pytest.mark.deep
@MANY
@given(edits=BYTES, keep=KEEP)
def test_many_a_spoilt_gguf(directory: Path, gguf_bytes: bytes, edits: Any, keep: float) -> None:
    check_gguf(directory, gguf_bytes, edits, keep)


@pytest.mark.deep
@MANY
@given(changes=CHANGES)
def test_many_a_spoilt_config(changes: dict[str, Any]) -> None:
    check_config(changes)


@pytest.mark.deep
@MANY
@given(entries=ENTRIES, data=st.sampled_from([b"", bytes(4), bytes(8), bytes(16)]))
def test_many_a_safetensors_header(model: Path, entries: dict[str, Any], data: bytes) -> None:
    check_header(model, entries, data)

"""What the loader makes of many files, remembered. Owns the files, and `readings.json`; the rule is in `test_readings.py`.

A prepared model keeps what was read of its source when it was made. If the same source is read otherwise from now on, or
refused, `FORMAT_VERSION` of engine.checkpoints.prepared must be another: else people go on with what the old reading made.

    python -m tests.house.readings    remember the readings, after FORMAT_VERSION was raised or files were added here
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import msgspec
import numpy as np
import torch

from engine.checkpoints.generation import check_generation
from engine.checkpoints.hugging_face_config import parse_config
from engine.checkpoints.prepare import prepare
from engine.checkpoints.prepared import FORMAT_VERSION, WEIGHTS_NAME, read_manifest
from engine.checkpoints.source import open_checkpoint
from engine.checkpoints.weight_shapes import source_shapes
from protocol.errors import ConfigError
from tests.model_files import (
    add_vocabulary,
    gguf_tensor_name,
    random_blocks,
    tokenizer_json,
    write_safetensors,
)
from tests.property.model_fields import ARCHITECTURES, FIELDS, GONE, draw_rope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RECORD = Path(__file__).with_name("readings.json")
REFUSED = "refused"
BASE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
NUM_ROPES = 300
GENERATION: dict[str, tuple[Any, ...]] = {
    "temperature": (0.6, 0, None),
    "top_p": (0.9, 0, 2),
    "top_k": (50, -1),
    "min_p": (0.1,),
    "repetition_penalty": (1.1, 0),
    "do_sample": (True, False),
    "num_beams": (1, 4),
    "suppress_tokens": ([], [5]),
    "eos_token_id": (2, [2, 5], None, "x"),
    "cache_implementation": ("static", "quantized"),
    "max_new_tokens": (5,),
}
KEYS: dict[str, tuple[Any, ...]] = {
    "rope.freq_base": (123.5, 0.0),
    "rope.scaling.type": ("none", "linear", "yarn", "longrope"),
    "rope.scaling.factor": (4.0,),
    "rope.scale_linear": (2.5,),
    "rope.scaling.original_context_length": (32,),
    "rope.scaling.attn_factor": (1.0, 1.3),
    "rope.scaling.yarn_beta_fast": (16.0,),
    "rope.scaling.yarn_beta_slow": (2.0,),
    "rope.dimension_count": (16, 8),
    "attention.key_length": (16, 32),
    "attention.sliding_window": (0, 8),
    "attention.causal": (True, False),
    "expert_count": (0, 4),
    "something.new": (1,),
}
SETTINGS: dict[str, Any] = {
    "eos_token": "<new>",
    "added_tokens_decoder": {"5": {"content": "w5"}},
    "additional_special_tokens": ["<new>"],
    "split_special_tokens": True,
    "add_bos_token": True,
    "pad_token": "w7",
}
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_K", "Q6_K")


def outcomes() -> dict[str, str]:
    """By case, in short: what was made of it."""
    found = {}
    for what, read in cases():
        try:
            made = read()
        except ConfigError:
            made = REFUSED.encode()
        found[_short(what.encode())] = REFUSED if made == REFUSED.encode() else _short(made)
    return found


def _short(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=5).hexdigest()


def cases() -> Iterator[tuple[str, Callable[[], bytes]]]:
    """What is read, in words that never change, and how."""
    for raw in configs():
        yield json.dumps(raw, sort_keys=True), partial(_of_config, raw)
    for name, values in GENERATION.items():
        for value in values:
            yield f"generation {name} {value!r}", partial(_of_generation, {name: value})
    for keys in gguf_keys():
        yield f"gguf {keys}", partial(_of_gguf, keys, "F32")
    for kind in KINDS:
        yield f"gguf of {kind}", partial(_of_gguf, {}, kind)
    yield "directory", _of_directory
    for name, value in SETTINGS.items():
        yield f"directory {name} {value!r}", partial(_of_directory, {name: value})


def configs() -> Iterator[dict[str, Any]]:
    """Every field alone with each of its values, and rotary parameters of every kind."""
    for architecture in ARCHITECTURES:
        own = {"architectures": [f"{architecture}ForCausalLM"], **BASE}
        for name, values in FIELDS.items():
            for value in values:
                changed = own | {name: value}
                yield {key: value for key, value in changed.items() if value is not GONE}
        for seed in range(NUM_ROPES):
            yield own | draw_rope(random.Random(f"{architecture} {seed}"))


def gguf_keys() -> Iterator[dict[str, Any]]:
    """Each key alone, and those of a scaling together."""
    for name, values in KEYS.items():
        yield from ({name: value} for value in values)
    for kind in ("none", "linear", "yarn"):
        yield {"rope.scaling.type": kind, "rope.scaling.factor": 4.0}
    yield {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32,
        "rope.scaling.yarn_beta_fast": 16.0,
    }


def _of_config(raw: dict[str, Any]) -> bytes:
    return msgspec.json.encode(parse_config(raw))


def _of_generation(raw: dict[str, Any]) -> bytes:
    return msgspec.json.encode(check_generation(raw, "file"))


def _of_gguf(keys: dict[str, Any], kind: str) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.gguf"
        _write_gguf(path, keys, kind)
        return _of_source(path, with_weights=not keys)


def _of_directory(changes: dict[str, Any] | None = None) -> bytes:
    """With every file that there may be; `changes` are of tokenizer_config.json."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "model"
        source.mkdir()
        raw = {"architectures": ["LlamaForCausalLM"], **BASE}
        shapes = source_shapes(parse_config(raw))
        write_safetensors(
            source / "model.safetensors",
            {
                tensor: torch.full(shape, 0.1 * index)
                for index, (tensor, shape) in enumerate(shapes)
            },
        )
        settings = {"eos_token": {"content": "w3"}, "bos_token": "w1", **(changes or {})}
        for file, content in (
            ("config.json", json.dumps(raw)),
            ("tokenizer.json", tokenizer_json(BASE["vocab_size"])),
            ("tokenizer_config.json", json.dumps(settings)),
            ("generation_config.json", json.dumps({"eos_token_id": [2], "temperature": 0.6})),
            ("chat_template.jinja", "{{ messages[0].content }}"),
        ):
            (source / file).write_text(content, encoding="utf-8")
        return _of_source(source, with_weights=True)


def _of_source(source: Path, *, with_weights: bool) -> bytes:
    """The reading; with weights everything that a prepared directory holds."""
    if not with_weights:
        checkpoint = open_checkpoint(source)
        return msgspec.json.encode([checkpoint.config, sorted(checkpoint.files.items())])
    prepared = prepare(source, source.parent / "cache", "float32", lambda *_: None)
    manifest = msgspec.structs.replace(read_manifest(prepared), source="", format_version=0)
    files = [prepared / WEIGHTS_NAME, *sorted(prepared.glob("*.jinja"))]
    files += [path for path in sorted(prepared.glob("*.json")) if path.name != "model.json"]
    held = [(path.name, _short(path.read_bytes())) for path in files]
    return msgspec.json.encode([manifest, held])


def _write_gguf(path: Path, keys: dict[str, Any], kind: str) -> None:
    """Rows of 256 numbers, so that every kind of block fits."""
    writer = gguf.GGUFWriter(path, "llama")
    base: dict[str, Any] = {
        "context_length": 128,
        "embedding_length": 256,
        "block_count": 1,
        "feed_forward_length": 256,
        "attention.head_count": 16,
        "attention.head_count_kv": 16,
    }
    add: dict[type, Any] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
    }
    for name, value in (base | {"attention.layer_norm_rms_epsilon": 1e-5} | keys).items():
        add[type(value)](f"llama.{name}", value)
    add_vocabulary(writer, 64)
    raw = BASE | {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 64,
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "tie_word_embeddings": True,
    }
    wanted = gguf.GGMLQuantizationType[kind]
    for index, (name, shape) in enumerate(source_shapes(parse_config(raw))):
        values = np.random.default_rng(index).normal(size=shape).astype(np.float32)
        _add_tensor(writer, gguf_tensor_name(name), values, wanted, index)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensor(
    writer: gguf.GGUFWriter, name: str, values: Any, kind: gguf.GGMLQuantizationType, seed: int
) -> None:
    if values.ndim < 2 or kind.name == "F32":
        writer.add_tensor(name, values)
    elif kind.name in ("F16", "BF16"):
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, random_blocks(kind, values.shape, seed), raw_dtype=kind)


def remembered() -> dict[str, str]:
    """Of this FORMAT_VERSION; nothing of one that is new."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    return dict(record["outcomes"]) if record["format_version"] == FORMAT_VERSION else {}


def remember() -> int:
    """Write the record; refuses where a known case has another outcome under the same FORMAT_VERSION."""
    now, before = outcomes(), remembered() if RECORD.exists() else {}
    changed = [case for case, outcome in before.items() if now.get(case, outcome) != outcome]
    if changed:
        print(f"{len(changed)} files are read otherwise: raise FORMAT_VERSION first")
        return 1
    record = {"format_version": FORMAT_VERSION, "outcomes": now}
    RECORD.write_text(json.dumps(record, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(remember())

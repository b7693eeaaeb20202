"""Model files of every form that the loader reads, made here: small, random, and with a tokenizer. Owns no assertion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, models

SCALES = {
    "Q8_0": (0, 1),
    "Q5_0": (0, 1),
    "Q5_1": (0, 2),
    "Q2_K": (80, 2),
    "Q3_K": (108, 1),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208, 1),
    "IQ4_XS": (0, 1),
    "IQ4_NL": (0, 1),
    "IQ2_XXS": (0, 1),
    "IQ3_S": (0, 1),
}
"""Where a block of the type has its half-precision scales, and how many."""
GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tokenizer_json(vocab_size: int) -> str:
    """A tokenizer with one word an id."""
    words = {f"w{index}": index for index in range(vocab_size)}
    return str(Tokenizer(models.WordLevel(words, unk_token="w0")).to_str())


def write_tokenizer(directory: Path, vocab_size: int) -> None:
    (directory / "tokenizer.json").write_text(tokenizer_json(vocab_size), encoding="utf-8")


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    kinds = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL", torch.float64: "F64"}
    for name, tensor in tensors.items():
        raw = tensor.contiguous().numpy().tobytes()
        offsets = [len(data), len(data) + len(raw)]
        kind = kinds[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def gguf_tensor_name(name: str) -> str:
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, _, kind = name.rpartition(".")
    if stem in top:
        return f"{top[stem]}.{kind}"
    layer, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{GGUF_NAMES[part]}.{kind}"


def permute(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """As llama.cpp's converter orders q and k of the llama architecture."""
    split = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)


def interleaved_back(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """What `permute` made of its argument, given its result."""
    split = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(values.shape))


def random_blocks(
    kind: gguf.GGMLQuantizationType, shape: tuple[int, ...], seed: int
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Bytes of a quantized matrix: any bits, with scales that keep its values small."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(seed)
    rows, blocks = shape[0], shape[1] // block
    raw = generator.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    start, count = SCALES[kind.name]
    scales = generator.uniform(0.0005, 0.002, (rows, blocks, count)).astype(np.float16)
    raw[:, :, start : start + 2 * count] = scales.view(np.uint8)
    return raw.reshape(rows, blocks * size)


def add_vocabulary(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    """Byte-level BPE of single letters and two merges; ids beyond them are unused."""
    tokens = ["<|end|>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "ab", "Ġab", *"0123"]
    kinds = [3] + [1] * (len(tokens) - 1)
    missing = range(len(tokens), vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list((tokens + [f"[PAD{index}]" for index in missing])[:vocab_size])
    writer.add_token_types((kinds + [5] * len(missing))[:vocab_size])
    writer.add_token_merges(["a b", "Ġ ab"])
    writer.add_eos_token_id(0)


def write_gguf(
    path: Path, model: Any, quantize: str = "F32", extra: dict[str, Any] | None = None
) -> dict[str, torch.Tensor]:
    """A transformers model as llama.cpp's converter writes it; matrices in `quantize`, random where only llama.cpp's own
    quantizer could make them. `extra` metadata is added by its kind. Returns the weights that the file stands for."""
    config = model.config
    architecture = {"mistral": "llama"}.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    add_vocabulary(writer, config.vocab_size)
    for key, value in (extra or {}).items():
        is_negative = isinstance(value, int) and value < 0
        add: dict[type, Any] = {
            bool: writer.add_bool,
            int: writer.add_int32 if is_negative else writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        add[type(value)](key, value)
    _add_rope(writer, rope, model)
    meant: dict[str, torch.Tensor] = {}
    for index, (name, tensor) in enumerate(model.state_dict().items()):
        if not (name == "lm_head.weight" and config.tie_word_embeddings):
            about = (config, architecture, index)
            meant[name] = torch.from_numpy(_add_tensor(writer, name, tensor, quantize, about))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def _add_rope(writer: gguf.GGUFWriter, rope: dict[str, Any], model: Any) -> None:
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for key in ("beta_fast", "beta_slow"):
            if key in rope:
                writer.add_float32(f"{writer.arch}.rope.scaling.yarn_{key}", rope[key])
    if rope["rope_type"] == "llama3":
        scaled = model.model.rotary_emb.inv_freq
        plain = rope["rope_theta"] ** -(
            torch.arange(0, 2 * len(scaled), 2).float() / (2 * len(scaled))
        )
        writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy().astype(np.float32))


def _add_tensor(
    writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor, quantize: str, about: Any
) -> np.ndarray[Any, Any]:
    """Returns the values as transformers has them, after what writing did to them."""
    config, architecture, index = about
    counts = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    heads = counts.get(name.split(".")[-2], 0) if architecture == "llama" else 0
    values = tensor.float().numpy().copy()
    values = permute(values, heads) if heads else values
    kind = gguf.GGMLQuantizationType[quantize]
    ours = gguf_tensor_name(name)
    if values.ndim < 2 or quantize == "F32":
        writer.add_tensor(ours, values)
    elif quantize == "F16":
        writer.add_tensor(ours, values.astype(np.float16))
        values = values.astype(np.float16).astype(np.float32)
    else:
        try:
            data = gguf.quants.quantize(values, kind)
        except NotImplementedError:
            data = random_blocks(kind, values.shape, index)
        writer.add_tensor(ours, data, raw_dtype=kind)
        values = gguf.quants.dequantize(data, kind)
    return interleaved_back(values, heads) if heads else values

"""The oracle: Hugging Face transformers on the weights of a prepared model. Owns nothing of Baton's computing."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.checkpoints.prepared import read_manifest


@cache
def smollm2(directory: str) -> Any:
    """LlamaForCausalLM in float32 with the weights of the prepared directory, dequantized once more by
    `gguf` straight from the file that the directory was made of."""
    import gguf

    with warnings.catch_warnings():  # its models take seconds to import
        warnings.simplefilter("ignore")
        from transformers import LlamaConfig, LlamaForCausalLM

    manifest = read_manifest(Path(directory))
    config = manifest.config
    reader = gguf.GGUFReader(manifest.source)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        )
    )
    model.load_state_dict(_state(reader, gguf), strict=False)
    return model.eval()


def _state(reader: Any, gguf: Any) -> dict[str, torch.Tensor]:
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    parts = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    state = {}
    for tensor in reader.tensors:
        weight = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        pieces = tensor.name.split(".")
        if pieces[0] == "blk":
            if pieces[2] in ("attn_q", "attn_k"):
                heads = 9 if pieces[2] == "attn_q" else 3
                rows = weight.shape[0] // heads
                shaped = weight.reshape(heads, rows // 2, 2, weight.shape[1])
                weight = shaped.swapaxes(1, 2).reshape(weight.shape)
            key = f"model.layers.{pieces[1]}.{parts[pieces[2]]}.weight"
        else:
            key = names[pieces[0]] + ".weight"
        state[key] = torch.from_numpy(weight.copy())
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return state


def first_difference(model: Any, prompt: list[int], tokens: list[int]) -> int | None:
    """Where `tokens` leave the model's greedy path after `prompt`; None when they never do.

    One forward pass over prompt and tokens: if every token is the argmax after what precedes it, the
    whole is the greedy path, by induction. What was asked before, of another shape's answers, is remembered.
    """
    return _first_difference(model, tuple(prompt), tuple(tokens))


@cache
def _first_difference(model: Any, prompt: tuple[int, ...], tokens: tuple[int, ...]) -> int | None:
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0]
    chosen = logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist()
    return next(
        (i for i, pair in enumerate(zip(chosen, tokens, strict=False)) if pair[0] != pair[1]), None
    )

"""transformers' own continuous batching on the same GPU and shape: output tokens a second.

usage: python -m benchmarks.gpu_bench.transformers_batching [--shape llama-8b] [--prompts 64] [--lengths 512,128]
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
import transformers

from benchmarks.gpu_bench.shapes import SHAPES


def build(shape: str) -> Any:
    """The model of that shape, random weights, bfloat16, on the GPU."""
    config = SHAPES[shape]
    common = {
        "vocab_size": config.vocab_size, "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size, "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim, "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps, "tie_word_embeddings": False,
        "eos_token_id": None, "bos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    kind = "Llama" if config.family == "llama" else "Qwen3"
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = getattr(transformers, f"{kind}ForCausalLM")(
            getattr(transformers, f"{kind}Config")(**common)
        )
        torch.set_default_dtype(torch.float32)
    model.set_attn_implementation("paged|sdpa")
    return model.requires_grad_(requires_grad=False)


def measure(shape: str, prompts: int, lengths: tuple[int, int]) -> dict[str, Any]:
    """All prompts at once; a short run first, so that nothing is compiled in the timed one. Not inside
    `torch.inference_mode`: transformers 5.17 writes to its own inputs from a thread that is not in it."""
    model = build(shape)
    generator = torch.Generator().manual_seed(3)
    inputs = [
        torch.randint(10, 10000, (lengths[0],), generator=generator).tolist()
        for _ in range(prompts)
    ]
    config = transformers.GenerationConfig(
        max_new_tokens=lengths[1], do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    model.generate_batch(inputs[:4], generation_config=config, progress_bar=False)
    started = time.perf_counter()
    found = model.generate_batch(inputs, generation_config=config, progress_bar=False)
    seconds = time.perf_counter() - started
    tokens = sum(len(output.generated_tokens) for output in found.values())
    if tokens != prompts * lengths[1]:
        raise RuntimeError(
            f"generate_batch gave {tokens} tokens of {prompts * lengths[1]}; its log says why"
        )
    return {
        "transformers": transformers.__version__, "prompts": prompts, "lengths": lengths,
        "output_tokens": tokens, "seconds": seconds, "output_tokens_per_s": tokens / seconds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="llama-8b")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--lengths", default="512,128")
    arguments = parser.parse_args()
    first, second = (int(word) for word in arguments.lengths.split(","))
    print(json.dumps(measure(arguments.shape, arguments.prompts, (first, second))), flush=True)


if __name__ == "__main__":
    main()

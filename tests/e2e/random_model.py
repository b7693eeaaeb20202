"""A small model with random weights that speaks the embedded model's tokens. Owns its files; no assertion."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import torch
import transformers

from deploy.config.topology import cache_directory
from engine.checkpoints.embedded import fetch_embedded
from engine.checkpoints.prepare import prepare

if TYPE_CHECKING:
    from pathlib import Path

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
VOCAB_SIZE, END_OF_TURN = 49152, 2


def _ignore(stage: str, fraction: float) -> None:
    """Nobody waits for it."""


def write_random_model(directory: Path, seed: int = 1) -> Path:
    """The same weights every time, for each seed."""
    cache = cache_directory()
    prepared = prepare(fetch_embedded(cache, _ignore), cache, "float32", _ignore)
    for name in FILES:
        if (prepared / name).exists():
            shutil.copy(prepared / name, directory / name)
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        eos_token_id=END_OF_TURN,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).eval().save_pretrained(directory)
    return directory

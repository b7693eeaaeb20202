"""Adapters as PEFT writes them, and models that it merged: what adapters are compared with. Owns no assertion."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch


def peft() -> Any:
    """Imported where it is used: importing takes two seconds of every process of a test run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("peft")


def write_adapter(
    model: Any, directory: Path, seed: int = 0, spread: float = 0.3, **config: Any
) -> Path:
    """An adapter of `model` with random weights, saved by PEFT; the model itself stays as it is."""
    chosen = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft().get_peft_model(model, peft().LoraConfig(**(chosen | config)))
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in wrapped.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                size = parameter.shape[1] ** 0.5
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.data = drawn * (spread if "lora_B" in name else 1.0) / size
        wrapped.save_pretrained(directory)
        wrapped.unload()
    if hasattr(model, "peft_config"):
        del model.peft_config
    return directory


def merged(load: Any, directory: Path) -> Any:
    """A fresh model of `load` with an adapter's weights merged into its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = peft().PeftModel.from_pretrained(load(), str(directory))
        return whole.merge_and_unload().eval()

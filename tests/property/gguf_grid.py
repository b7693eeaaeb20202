"""Random GGUF files: the tokens of transformers with the weights that llama.cpp finds in them, or refused by key. Owns the keys
of GGUF that a case may have, and which of them change answers.

usage: python -m tests.property.gguf_grid [--cases N] [--seed FIRST] [--verbose]
"""

from __future__ import annotations

import random
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoints.prepare import prepare
from protocol.errors import ConfigError
from tests import llama_cpp
from tests.model_files import write_gguf
from tests.property.model_grid import campaign, compare
from tests.unit.engine.test_llama_cpp_files import weights_in
from tests.unit.engine.test_model_grid import SHAPE, build

FORMS = ("F32", "F16", "Q8_0", "Q4_K_M", "Q6_K")
FIELDS: dict[str, tuple[Any, ...]] = {
    "intermediate_size": (512,),
    "num_hidden_layers": (1, 3),
    "num_key_value_heads": (1, 4),
    "head_dim": (64, 128),
    "max_position_embeddings": (513, 1024),
    "rms_norm_eps": (1e-5, 0.1),
    "tie_word_embeddings": (True,),
    "attention_bias": (True,),
    "mlp_bias": (True,),
}
ROPE: tuple[dict[str, Any], ...] = (
    {"rope_type": "default", "rope_theta": 123.5},
    {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.5},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "beta_fast": 16.0},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 96, "beta_slow": 2.5},
    {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.finetuned": (True, False),
    "attention.sliding_window": (0, 8192),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "vocab_size": (300,),
    "use_parallel_residual": (False,),
}
CHANGING: dict[str, tuple[Any, ...]] = {
    "rope.scaling.attn_factor": (1.3, 0.0, "1"),
    "rope.scaling.yarn_ext_factor": (0.0, 0.5, -1.0, 2),
    "rope.scaling.yarn_attn_factor": (1.2, 0.0),
    "rope.scaling.yarn_log_multiplier": (0.1,),
    "rope.scaling.alpha": (2.0,),
    "rope.dimension_count": (32, 0),
    "rope.dimension_sections": (8,),
    "attention.sliding_window": (8, 511, -1, "8"),
    "attention.causal": (False, 0),
    "attention.clamp_kqv": (8.0,),
    "attention.max_alibi_bias": (8.0,),
    "attention.scale": (0.5,),
    "attention.temperature_scale": (0.1,),
    "attention.temperature_length": (64,),
    "attention.value_length": (32,),
    "attention.layer_norm_epsilon": (1e-5,),
    "attention.shared_kv_layers": (1,),
    "attn_logit_softcapping": (50.0,),
    "final_logit_softcapping": (30.0,),
    "router_logit_softcapping": (30.0,),
    "logit_scale": (0.5,),
    "embedding_scale": (12.0,),
    "residual_scale": (0.5,),
    "swin_norm": (True,),
    "expert_count": (4,),
    "leading_dense_block_count": (1,),
    "nextn_predict_layers": (1,),
    "pooling_type": (1,),
    "something.new": (1,),
}


@dataclass(frozen=True, slots=True)
class GgufCase:
    """One random file; `neutral` keys ask for nothing, `changing` ones for something that is not computed here."""

    seed: int
    architecture: str
    form: str
    backend: str
    changes: dict[str, Any]
    neutral: dict[str, Any]
    changing: dict[str, Any]
    is_long: bool = False


def draw_gguf(seed: int) -> GgufCase:
    """The same for the same seed."""
    draw = random.Random(f"gguf {seed}")
    architecture = draw.choice(("Llama", "Llama", "Mistral", "Qwen2", "Qwen3"))
    names = draw.sample(list(FIELDS), draw.choice((0, 1, 2, 3)))
    changes = {name: draw.choice(FIELDS[name]) for name in names}
    if draw.random() < 0.5:
        changes["rope_parameters"] = {"rope_theta": 1e4} | draw.choice(ROPE)
    if draw.random() < 0.05:
        changes["max_position_embeddings"] = 4400
    changes |= {"sliding_window": None} if architecture == "Mistral" else {}
    changes |= {"head_dim": 64} if architecture == "Qwen3" and "head_dim" not in changes else {}
    neutral = dict(_drawn(draw, NEUTRAL) for _ in range(draw.choice((0, 1, 3))))
    changing = dict(_drawn(draw, CHANGING) for _ in range(draw.random() < 0.3))
    # llama.cpp reads what it quantizes
    form, backend = draw.choice(FORMS[:2] if changing else FORMS), draw.choice(("torch", "cpu"))
    is_long = changes.get("max_position_embeddings") == 4400
    return GgufCase(seed, architecture, form, backend, changes, neutral, changing, is_long)


def _drawn(draw: random.Random, table: dict[str, tuple[Any, ...]]) -> tuple[str, Any]:
    name = draw.choice(list(table))
    return name, draw.choice(table[name])


def write_case(case: GgufCase, path: Path) -> Any:
    """The file, and transformers' model with the weights that llama.cpp takes it for."""
    model = build(case.architecture, SHAPE | case.changes, case.seed)
    family = {"Llama": "llama", "Mistral": "llama"}.get(
        case.architecture, case.architecture.lower()
    )
    extra = {f"{family}.{key}": value for key, value in (case.neutral | case.changing).items()}
    if case.form in ("F32", "F16"):
        model.load_state_dict(write_gguf(path, model, case.form, extra), strict=False)
    else:
        write_gguf(path.with_name("plain.gguf"), model, extra=extra)
        llama_cpp.quantize(path.with_name("plain.gguf"), path, case.form)
        weights, _ = weights_in(path, model)
        model.load_state_dict(weights, strict=False)
    model.tie_weights()
    return model


def run_gguf(case: GgufCase) -> tuple[str, str]:
    """(equal, refused or fault, and why)."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(name) / "model.gguf"
        model = write_case(case, path)
        try:
            prepared = prepare(path, Path(name) / "cache", "float32", lambda stage, share: None)
        except ConfigError as error:
            sentence = str(error)
            is_named = any(f"{key}`" in sentence for key in case.changing)
            verdict = "refused" if is_named and str(path) in sentence else "fault"
            return verdict, sentence
        if case.changing:
            return "fault", "a key that changes answers was passed over"
        return compare(case, model, prepared)


if __name__ == "__main__":
    sys.exit(campaign(str(__doc__), draw_gguf, run_gguf))

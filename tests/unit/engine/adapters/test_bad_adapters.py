"""Adapters that nobody vouches for: one sentence names file and field, and nothing is kept."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from engine.adapters.content import content_path, map_content
from engine.adapters.modules import modules_of
from engine.adapters.prepare import check_adapter, prepare_adapter
from engine.adapters.resident import ResidentAdapters
from protocol.adapters import AdapterRef
from protocol.errors import ConfigError
from protocol.model_config import ModelConfig

MODEL = ModelConfig(
    family="llama",
    vocab_size=300,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    max_position_embeddings=64,
)
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "down_proj"],
    "bias": "none",
}
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def tensors_of(ends: tuple[str, ...] = ("q_proj", "down_proj"), rank: int = 4) -> dict[str, Any]:
    found = {}
    for module in modules_of(MODEL):
        if module.name.endswith(ends):
            name = f"base_model.model.{module.name}"
            found[f"{name}.lora_A.weight"] = np.ones((rank, module.inputs), np.float32)
            found[f"{name}.lora_B.weight"] = np.ones((module.outputs, rank), np.float32)
    return found


def write(directory: Path, config: Any = None, tensors: Any = None) -> Path:
    directory.mkdir(exist_ok=True)
    told = config if isinstance(config, str) else json.dumps(CONFIG | (config or {}))
    (directory / "adapter_config.json").write_text(told)
    save_file(tensors_of() if tensors is None else tensors, directory / "adapter_model.safetensors")
    return directory


def prepared(directory: Path, dtype: str = "float32") -> str:
    return prepare_adapter(directory, directory / "kept", MODEL, dtype)


CONFIGS: list[tuple[Any, str]] = [
    ("[]", "adapter_config.json"),
    ("{", "adapter_config.json"),
    ({"peft_type": "IA3"}, "peft_type"),
    ({"peft_type": 3}, "peft_type"),
    ({"task_type": "SEQ_CLS"}, "task_type"),
    ({"r": 65}, "`r`"),
    ({"r": 0}, "`r`"),
    ({"r": True}, "`r`"),
    ({"r": 10**400}, "`r`"),
    ({"lora_alpha": "16"}, "lora_alpha"),
    ({"lora_alpha": 1e999}, "lora_alpha"),
    ({"use_rslora": "yes"}, "use_rslora"),
    ({"use_dora": True}, "use_dora"),
    ({"bias": "all"}, "bias"),
    ({"lora_bias": True}, "lora_bias"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ({"target_parameters": ["x"]}, "target_parameters"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
    ({"init_lora_weights": {"x": 1}}, "init_lora_weights"),
    ({"a_field_of_tomorrow": 1}, "a_field_of_tomorrow"),
    ({"target_modules": None}, "target_modules"),
    ({"target_modules": []}, "target_modules"),
    ({"target_modules": [1]}, "target_modules"),
    ({"target_modules": ["c_attn"]}, "target_modules"),
    ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
    ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
    ({"target_modules": "("}, "target_modules"),
    ({"target_modules": r"((\w|\.)+)+!"}, "too long to match"),
    ({"target_modules": "x" * 200_000}, "target_modules"),
    ({"target_modules": "all-linear", "layers_to_transform": 1}, "layers_to_transform"),
    ({"layers_to_transform": [-1]}, "layers_to_transform"),
    ({"layers_to_transform": [0], "layers_pattern": "blocks"}, "layers_pattern"),
    ({"rank_pattern": {"q_proj": 65}}, "rank_pattern"),
    ({"rank_pattern": {"q_proj": 2.5}}, "rank_pattern"),
    ({"rank_pattern": {"(": 2}}, "rank_pattern"),
    ({"rank_pattern": [1]}, "rank_pattern"),
    ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern"),
    ({"alpha_pattern": {r"((\w|\.)+)+!": 1}}, "too long to match"),
]


@pytest.mark.parametrize(("config", "named"), CONFIGS)
def test_a_configuration_is_refused_by_the_name_of_its_field(
    tmp_path: Path, config: Any, named: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        prepared(write(tmp_path, config))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not (tmp_path / "kept").exists()


TENSORS: list[tuple[dict[str, Any], str]] = [
    ({Q: np.ones((4, 33), np.float32)}, "shape (4, 33), expected (4, 32)"),
    ({Q: np.ones((5, 32), np.float32)}, "shape (5, 32)"),
    ({Q: np.ones((4, 32), np.int32)}, "I32"),
    ({Q: np.full((4, 32), np.nan, np.float32)}, "without a size"),
    ({Q: np.full((4, 32), 1e300, np.float64)}, "without a size"),
    ({Q.replace("lora_A.weight", "lora_magnitude_vector"): np.ones(32, np.float32)}, "DoRA"),
    ({Q.replace(".weight", ".bias"): np.ones(32, np.float32)}, "bias"),
    (
        {"base_model.model.lm_head.modules_to_save.weight": np.ones(3, np.float32)},
        "modules_to_save",
    ),
    ({"base_model.model.lm_head.weight": np.ones(3, np.float32)}, "no use"),
    ({Q.replace("layers.0", "layers.9"): np.ones((4, 32), np.float32)}, "layers.9"),
]


@pytest.mark.parametrize(("tensors", "named"), TENSORS)
def test_a_tensor_is_refused_by_its_name(
    tmp_path: Path, tensors: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=r"adapter_model\.safetensors") as caught:
        prepared(write(tmp_path, None, tensors_of() | tensors))
    assert named in str(caught.value)
    with pytest.raises(ConfigError, match=re.escape(str(caught.value))):  # before anything starts
        check_adapter(tmp_path, MODEL)


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    tensors = tensors_of()
    del tensors[Q]
    with pytest.raises(ConfigError, match=f"lacks the tensor {Q}"):
        prepared(write(tmp_path, None, tensors))


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, size: int) -> None:
    path = write(tmp_path) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ConfigError, match=r"adapter_model\.safetensors"):
        prepared(tmp_path)


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    path = write(tmp_path) / "adapter_model.safetensors"
    path.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ConfigError, match=r"adapter_model\.bin may run any program"):
        prepared(tmp_path)


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no directory"):
        prepared(tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equal_contents_have_one_digest_and_others_another(tmp_path: Path, dtype: str) -> None:
    first, same = write(tmp_path / "a"), write(tmp_path / "b", {"lora_dropout": 0.5})
    other = write(tmp_path / "c", None, tensors_of() | {Q: np.zeros((4, 32), np.float32)})
    scaled = write(tmp_path / "d", {"lora_alpha": 9})
    found = [prepared(one, dtype) for one in (first, same, other, scaled)]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_a_content_that_was_changed_is_refused(tmp_path: Path) -> None:
    digest = prepared(write(tmp_path))
    path = content_path(tmp_path / "kept", digest)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:40], b"", whole[:-7] + b"\x01" + whole[-6:]):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="load it again"):
            map_content(tmp_path / "kept", digest)


@pytest.mark.parametrize("digest", ["", "../x", "A" * 64, "0" * 63])
def test_what_is_no_digest_leads_nowhere(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ConfigError, match="no adapter's digest"):
        map_content(tmp_path, digest)


def test_the_least_recently_used_leave_and_who_holds_one_keeps_it(tmp_path: Path) -> None:
    refs = [
        AdapterRef(str(n), prepared(write(tmp_path / str(n), {"lora_alpha": n})))
        for n in range(1, 6)
    ]
    for ref in refs:
        content_path(tmp_path / ref.name / "kept", ref.digest).rename(
            content_path(tmp_path, ref.digest)
        )
    resident = ResidentAdapters(tmp_path, 3, lambda _: None)
    first = resident.hold(refs[0])
    for ref in (refs[1], refs[2], refs[0], refs[3]):
        resident.hold(ref)
    assert (len(resident), resident.loads) == (3, 4)
    assert resident.hold(refs[0]) is first
    resident.hold(refs[1])
    assert resident.loads == 5
    content_path(tmp_path, refs[0].digest).unlink()
    for ref in refs[1:4]:
        resident.hold(ref)
    assert resident.hold(refs[0]) is first
    for ref in refs[1:4]:
        resident.hold(ref)
    del first
    with pytest.raises(ConfigError, match="adapter '1'"):
        resident.hold(refs[0])

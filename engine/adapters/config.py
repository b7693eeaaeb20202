"""adapter_config.json of PEFT. Owns what its fields mean, and that whatever would change the result and is not computed
here refuses the adapter by its name; torch-free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.adapters.modules import modules_of
from engine.adapters.patterns import full_matches, suffix_matches
from engine.checkpoints.fields import Fields, read_object, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from engine.adapters.modules import Module
    from protocol.model_config import ModelConfig

CONFIG_NAME = "adapter_config.json"
_MAX_BYTES = 1 << 22
ALL_LINEAR = "all-linear"
_OTHERS = ("lm_head", "model.embed_tokens")
"""Layers of the model that are adapted nowhere here."""
_WITHOUT_EFFECT = frozenset(
    [
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "lora_dropout",
        "peft_version",
        "megatron_core",
        "runtime_config",
        "corda_config",
        "eva_config",
        "lora_ga_config",
        "qalora_group_size",
        "ensure_weight_tying",
    ]
)
_READ = frozenset(
    [
        "peft_type",
        "task_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "init_lora_weights",
        "bias",
    ]
)
_HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""How training may have begun; other ways change the model's own weights first."""
_MOST_PATTERNS = 4096


@dataclass(frozen=True, slots=True)
class Adapted:
    """A module that the adapter changes by `scale` * B A, of that rank."""

    module: Module
    rank: int
    scale: float


def read_config(directory: Path, model: ModelConfig, max_rank: int) -> list[Adapted]:
    """Every module that the adapter changes; ConfigError names the field that cannot be served."""
    path = directory / CONFIG_NAME
    fields = Fields(read_object(path, _MAX_BYTES), str(path))
    _check_kind(fields)
    modules = list(modules_of(model))
    targets = _targets(fields, modules)
    names = [module.name for module in modules]
    ranks = _of_pattern(fields, "rank_pattern", names)
    alphas = _of_pattern(fields, "alpha_pattern", names)
    rank = fields.integer("r", 8, most=max_rank)
    alpha = fields.number("lora_alpha", 8, least=-math.inf)
    is_rs = fields.flag("use_rslora", default=False)
    found = []
    for module, is_target in zip(modules, targets, strict=True):
        if is_target:
            own = _rank_of(fields, ranks.get(module.name, rank), max_rank)
            size = math.sqrt(own) if is_rs else own
            scale = Fields({"alpha": alphas.get(module.name, alpha)}, fields.where)
            found.append(Adapted(module, own, scale.number("alpha", least=-math.inf) / size))
    return found


def _rank_of(fields: Fields, value: Any, max_rank: int) -> int:
    return Fields({"rank_pattern": value}, fields.where).integer("rank_pattern", most=max_rank)


def _check_kind(fields: Fields) -> None:
    kind, task = fields.text("peft_type"), fields.values.get("task_type")
    if kind != "LORA":
        fields.refuse("peft_type", f"is {shown(kind)}; only LORA is supported")
    if task not in (None, "CAUSAL_LM"):
        fields.refuse("task_type", f"is {shown(task)}; only CAUSAL_LM is supported")
    if fields.values.get("bias") not in (None, "none"):
        fields.refuse("bias", f"is {shown(fields.values['bias'])}; only 'none' is supported")
    start = fields.values.get("init_lora_weights")
    if not any(start is harmless or start == harmless for harmless in _HARMLESS_STARTS):
        fields.refuse(
            "init_lora_weights", f"is {shown(start)}, which changes the model itself: not supported"
        )
    for name, value in fields.values.items():
        if value and name not in _READ and name not in _WITHOUT_EFFECT:
            fields.refuse(name, f"is {shown(value)}, which is not supported")


def _targets(fields: Fields, modules: Sequence[Module]) -> list[bool]:
    """Of each module whether the adapter changes it."""
    names = [*(module.name for module in modules), *_OTHERS]
    wanted, layers = fields.values.get("target_modules"), _layers(fields)
    found = (
        [name not in _OTHERS for name in names]
        if wanted == ALL_LINEAR
        else _named(fields, "target_modules", names)
    )
    excluded = (
        _named(fields, "exclude_modules", names)
        if fields.values.get("exclude_modules")
        else [False] * len(names)
    )
    found = [one and not out for one, out in zip(found, excluded, strict=True)]
    for name, is_target in zip(names[len(modules) :], found[len(modules) :], strict=True):
        if is_target:
            fields.refuse("target_modules", f"means {name}, too, whose adaptation is not supported")
    if layers is not None:
        if isinstance(wanted, str):
            fields.refuse("layers_to_transform", "goes with a list of `target_modules` only")
        _check_pattern(fields)
        found = [
            one and module.layer in layers for one, module in zip(found, modules, strict=False)
        ]
    if not any(found):
        fields.refuse("target_modules", f"names no linear layer of this model: {shown(wanted)}")
    return found[: len(modules)]


def _layers(fields: Fields) -> frozenset[int] | None:
    value = fields.values.get("layers_to_transform")
    if value is None or value == []:
        return None
    numbers = value if isinstance(value, list) else [value]
    return frozenset(
        Fields({"layers_to_transform": one}, fields.where).integer("layers_to_transform", least=0)
        for one in numbers
    )


def _check_pattern(fields: Fields) -> None:
    value = fields.values.get("layers_pattern")
    names = value if isinstance(value, list) else [value]
    if value and names != ["layers"]:
        fields.refuse("layers_pattern", f"is {shown(value)}; this model's is 'layers'")


def _named(fields: Fields, name: str, names: Sequence[str]) -> list[bool]:
    """As PEFT compares them: a text is a regular expression for the whole name, a list has ends of names."""
    value = fields.values.get(name)
    if isinstance(value, str) and value:
        return full_matches([value], names, f"{fields.where}: `{name}`")[0]
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        fields.refuse(name, f"must be a text or a list of names, not {shown(value)}")
    ends = set(value)
    return [any(end in ends for end in _ends(module)) for module in names]


def _ends(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _of_pattern(fields: Fields, name: str, names: Sequence[str]) -> dict[str, Any]:
    """What the first key that means a module says of it."""
    patterns: Mapping[str, Any] = fields.values.get(name) or {}
    if not isinstance(patterns, dict) or len(patterns) > _MOST_PATTERNS:
        fields.refuse(name, f"must be an object of at most {_MOST_PATTERNS}, not {shown(patterns)}")
    found: dict[str, Any] = {}
    for value in patterns.values():
        if isinstance(value, bool) or not isinstance(value, int | float):
            fields.refuse(name, f"must hold numbers, not {shown(value)}")
    meant = suffix_matches(list(patterns), names, f"{fields.where}: `{name}`")
    for value, matches in zip(patterns.values(), meant, strict=True):
        for module, is_meant in zip(names, matches, strict=True):
            if is_meant:
                found.setdefault(module, value)
    return found

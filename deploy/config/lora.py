"""What `--lora-modules` says. Owns both of vLLM's spellings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence


class LoraModule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An adapter to load at the start; `base_model_name` must be a served name."""

    name: str
    path: str
    base_model_name: str | None = None


def module_of(text: str) -> LoraModule:
    """NAME=PATH, or a JSON object; ValueError for what is neither."""
    if text.lstrip().startswith("{"):
        try:
            found = msgspec.json.decode(text, type=LoraModule)
        except msgspec.MsgspecError as error:
            raise ValueError(f"{text[:200]!r} is no adapter: {error}") from None
    else:
        name, _, path = text.partition("=")
        found = LoraModule(name, path)
    if not found.name or not found.path:
        raise ValueError(f'{text[:200]!r}: write NAME=PATH, or {{"name": …, "path": …}}')
    return found


def lora_module(text: str) -> str:
    """A text that `module_of` reads."""
    module_of(text)
    return text


def modules_of(
    texts: Sequence[str], served_names: Sequence[str], *, is_alone: bool = True
) -> tuple[LoraModule, ...]:
    """All of them, or where the model is not alone those that are its own; ConfigError for names that are there twice, or
    served, and for adapters of a model that is not here."""
    modules, known = tuple(module_of(text) for text in texts), set(served_names)
    if not is_alone:
        modules = tuple(m for m in modules if m.base_model_name in (None, *served_names))
    for module in modules:
        if module.name in known:
            raise ConfigError(f"--lora-modules: the name {module.name!r} is there twice")
        known.add(module.name)
        base = module.base_model_name
        if base is not None and base not in served_names:
            raise ConfigError(
                f"--lora-modules: {module.name!r} is for the model {base!r}; served: {', '.join(served_names)}"
            )
    return modules

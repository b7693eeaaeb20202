"""Several models in one server. Owns how they are named on the command line and in a file, and what each may have for itself.

baton serve A B C          models:
                             - A
                             - model: B
                               served-model-name: [b, b-chat]
                               kv-cache-memory: 512MiB
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from deploy.config.spelling import did_you_mean
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

KEY = "models"
OWN = (
    "model",
    "served-model-name",
    "dtype",
    "quantization",
    "max-model-len",
    "chat-template",
    "tool-call-parser",
    "reasoning-parser",
    "tool-prompt",
    "pooling",
    "pd",
    "prefill-replicas",
    "decode-replicas",
    "kv-cache-memory",
    "max-num-seqs",
    "max-num-batched-tokens",
    "keep-alive",
)
"""Options that a model of several may have for itself; the others are everybody's."""
SHARED_NAMES = ("served_model_name", "chat_template", "max_model_len")
"""What cannot be the same for several models."""
KEY_LENGTH = 8
"""Of a key: it begins the names of sockets, whose paths have 107 bytes."""
MAX_MODELS = 64


def entries_of(raw: Any, where: str) -> list[dict[str, Any]]:
    """What `models:` says, one object of options a model; ConfigError for what it cannot say."""
    if not isinstance(raw, list) or not raw:
        raise ConfigError(f"{where}: write a list, each item a model or an object with `model:`")
    if len(raw) > MAX_MODELS:
        raise ConfigError(f"{where}: {len(raw)} models are more than {MAX_MODELS}")
    return [_entry(item, f"{where}[{index}]") for index, item in enumerate(raw)]


def _entry(item: Any, where: str) -> dict[str, Any]:
    if isinstance(item, str):
        return {"model": item}
    if not isinstance(item, dict):
        raise ConfigError(f"{where}: {item!r} is neither a model's name nor an object of options")
    own = {str(key).replace("_", "-"): value for key, value in item.items()}
    for key in own:
        if key not in OWN:
            near = did_you_mean(key, OWN)
            raise ConfigError(
                f"{where}: {key!r} is nothing that one model may have for itself{near}"
            )
    if not own.get("model"):
        raise ConfigError(f"{where}: it has no `model:`")
    return own


def check_names(names: Iterable[Sequence[str]]) -> None:
    """ConfigError when two models would have the same name."""
    seen: set[str] = set()
    for own in names:
        for name in own:
            if name in seen:
                raise ConfigError(
                    f"models: two of them are called {name!r}; give one a `served-model-name:` of its own"
                )
        seen.update(own)


def keys_of(names: Sequence[str]) -> list[str]:
    """A short key for each model, in order, no two the same; none where there is one model."""
    if len(names) == 1:
        return [""]
    keys: list[str] = []
    for name in names:
        base = re.sub(r"[^a-z0-9]+", "-", name.lower().rpartition("/")[2]).strip("-")
        base = base[:KEY_LENGTH].strip("-") or "model"
        key, number = base, 2
        while key in keys:
            suffix = str(number)
            key, number = base[: KEY_LENGTH - len(suffix)] + suffix, number + 1
        keys.append(key)
    return keys

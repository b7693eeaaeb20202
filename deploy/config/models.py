"""Several models in one server. Owns how they are named on the command line and in a file, and what each may have for itself.

baton serve A B C          models:
                             - A
                             - model: B
                               served-model-name: [b, b-chat]
                               kv-cache-memory: 512MiB
                             - name: chat
                               revisions:
baton serve chat@v1:90=C         - {revision: v1, model: C, weight: 90}
            chat@v2:10=D         - {revision: v2, model: D, weight: 10}
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from deploy.config.spelling import did_you_mean
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

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
    "enable-lora",
    "lora-modules",
)
"""Options that a model of several may have for itself; the others are everybody's."""
SHARED_NAMES = ("served_model_name", "chat_template", "max_model_len")
"""What cannot be the same for several models."""
REVISIONS = "revisions"
MAX_WEIGHT = 1e6
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
SPELLED = re.compile(
    r"(?P<name>[^@=\s./~][^@=\s]*)@(?P<revision>[A-Za-z0-9][A-Za-z0-9._-]{0,31})(?::(?P<weight>\d+(?:\.\d+)?))?=(?P<model>.+)"
)
KEY_LENGTH = 8
"""Of a key: it begins the names of sockets, whose paths have 107 bytes."""
MAX_MODELS = 64


@dataclass(frozen=True)
class Version:
    """A revision of a model, and its weight. `names` are what clients call the model; this one alone is `chat@v2`."""

    names: tuple[str, ...]
    revision: str
    weight: float

    @property
    def spelled(self) -> str:
        """What means this revision and no other."""
        return f"{self.names[0]}@{self.revision}"


@dataclass(frozen=True)
class Entry:
    """One model: options of its own, and what it is a revision of, if it is one. `where` it was written, for errors."""

    options: dict[str, Any]
    where: str = ""
    version: Version | None = None


def entries_of(raw: Any, where: str) -> list[Entry]:
    """What `models:` says; ConfigError for what it cannot say."""
    if not isinstance(raw, list) or not raw:
        raise ConfigError(f"{where}: write a list, each item a model or an object with `model:`")
    if len(raw) > MAX_MODELS:
        raise ConfigError(f"{where}: {len(raw)} models are more than {MAX_MODELS}")
    found: list[Entry] = []
    for index, item in enumerate(raw):
        found += _entries(item, f"{where}[{index}]")
    check_versions(found)
    return found


def _entries(item: Any, where: str) -> list[Entry]:
    if isinstance(item, str):
        return [Entry({"model": item}, where)]
    if not isinstance(item, dict):
        raise ConfigError(f"{where}: {item!r} is neither a model's name nor an object of options")
    own = _options(item, (*OWN, "name", REVISIONS), where)
    if "name" in own:
        own["served-model-name"] = own.pop("name")
    if REVISIONS in own:
        return _revisions(own.pop(REVISIONS), own, f"{where}.{REVISIONS}")
    if not own.get("model"):
        raise ConfigError(f"{where}: it has no `model:`")
    return [Entry(own, where)]


def _options(item: dict[Any, Any], known: Sequence[str], where: str) -> dict[str, Any]:
    own = {str(key).replace("_", "-"): value for key, value in item.items()}
    if len(own) < len(item):
        raise ConfigError(f"{where}: something is there twice, with a dash and an underscore")
    for key in own:
        if key not in known:
            near = did_you_mean(key, known)
            raise ConfigError(
                f"{where}: {key!r} is nothing that one model may have for itself{near}"
            )
    return own


def _revisions(raw: Any, shared: dict[str, Any], where: str) -> list[Entry]:
    """`shared` is what all of them have."""
    names = _names(shared.pop("served-model-name", None), where)
    if not isinstance(raw, list) or not raw:
        raise ConfigError(f"{where}: write a list, each item with `revision:` and `model:`")
    found: list[tuple[str, Any, dict[str, Any]]] = []
    for index, item in enumerate(raw):
        here = f"{where}[{index}]"
        if not isinstance(item, dict):
            raise ConfigError(f"{here}: {item!r} is no object with `revision:` and `model:`")
        known = [*(key for key in OWN if key != "served-model-name"), "revision", "weight"]
        own = shared | _options(item, known, here)
        revision, weight = check_revision(own.pop("revision", None), here), own.pop("weight", None)
        if not own.get("model"):
            raise ConfigError(f"{here}: it has no `model:`")
        found.append((revision, _weight(weight, here), own))
    weights = weights_of([weight for _, weight, _ in found], where)
    return [
        Entry(own, f"{where}[{index}]", Version(names, revision, weight))
        for index, ((revision, _, own), weight) in enumerate(zip(found, weights, strict=True))
    ]


def _names(raw: Any, where: str) -> tuple[str, ...]:
    names = (raw,) if isinstance(raw, str) else tuple(raw) if isinstance(raw, list) else ()
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(
            f"{where}: say what clients call the model: `name:` beside `{REVISIONS}:`"
        )
    return names


def check_revision(raw: Any, where: str) -> str:
    """ConfigError for what cannot be a revision's name. YAML reads 1 and 1.5 as numbers."""
    name = str(raw) if isinstance(raw, int | float) and not isinstance(raw, bool) else raw
    if not isinstance(name, str) or not REVISION.fullmatch(name):
        raise ConfigError(
            f"{where}: revision: {raw!r} is no name of up to 32 letters, digits, dots, dashes and underscores"
        )
    return name


def _weight(raw: Any, where: str) -> float | None:
    if raw is None:
        return None
    try:
        weight = math.nan if isinstance(raw, bool) else float(raw)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 <= weight <= MAX_WEIGHT:
        raise ConfigError(f"{where}: weight: {raw!r} is no number from 0 to {MAX_WEIGHT:g}")
    return weight


def weights_of(given: Sequence[float | None], where: str) -> list[float]:
    """Of each revision: where none has a weight the first has everything, else who has none gets nothing."""
    if all(weight is None for weight in given):
        return [100.0, *([0.0] * (len(given) - 1))]
    weights = [weight or 0.0 for weight in given]
    if not sum(weights):
        raise ConfigError(f"{where}: weight: some revision must have more than 0")
    return weights


def entries_named(models: Sequence[str]) -> list[Entry]:
    """What the command line says: models, and revisions as `NAME@REVISION[:WEIGHT]=MODEL`."""
    found: list[tuple[str, str, float | None, str]] = []
    for model in models:
        match = SPELLED.fullmatch(model)
        if match is None:
            found.append(("", "", None, model))
        else:
            weight = None if match["weight"] is None else float(match["weight"])
            found.append((match["name"], match["revision"], weight, match["model"]))
    entries: list[Entry] = []
    for name, group in groupby(found, key=lambda one: one[0]):
        several = list(group)
        if not name:
            entries += [Entry({"model": model}, model) for *_, model in several]
            continue
        weights = weights_of([weight for _, _, weight, _ in several], name)
        for (_, revision, _, model), weight in zip(several, weights, strict=True):
            version = Version((name,), revision, weight)
            entries.append(Entry({"model": model}, version.spelled, version))
    check_versions(entries)
    return entries


def check_versions(entries: Sequence[Entry]) -> None:
    """ConfigError for two revisions of one name, and for a name whose revisions stand apart."""
    spelled = [entry.version.spelled for entry in entries if entry.version is not None]
    for name in spelled:
        if spelled.count(name) > 1:
            raise ConfigError(f"models: there are two {name}")
    groups = [key for key, _ in groupby(e.version.names for e in entries if e.version is not None)]
    for own in groups:
        if groups.count(own) > 1:
            raise ConfigError(f"models: name all revisions of {own[0]} one after another")


def claimed(models: Iterable[tuple[Sequence[str], Version | None]]) -> list[Sequence[str]]:
    """The names that each model has for itself, of `(served names, revision)`: what all revisions of one are called once."""
    found: list[Sequence[str]] = []
    shared: set[tuple[str, ...]] = set()
    for served, version in models:
        found.append(served)
        if version is not None and version.names not in shared:
            shared.add(version.names)
            found.append(version.names)
    return found


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
        keys.append(key_for(name, keys))
    return keys


def key_for(name: str, taken: Collection[str]) -> str:
    """A short key that no other model has."""
    base = re.sub(r"[^a-z0-9]+", "-", name.lower().rpartition("/")[2]).strip("-")
    base = base[:KEY_LENGTH].strip("-") or "model"
    key, number = base, 2
    while key in taken:
        suffix = str(number)
        key, number = base[: KEY_LENGTH - len(suffix)] + suffix, number + 1
    return key

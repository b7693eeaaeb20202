"""What there is to see of several models together. Owns how their views and accounts add up; pure.

`GET /cluster` of a fleet has what one model's has, summed where sums mean something, so that whoever knows the one can
read the other; and each model's own under `models`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LISTS = ("workers", "lost")
COUNTS = (
    "target",
    "pools",
    "requests",
    "replays",
    "handovers",
    "transfer_failures",
    "unknown_failures",
    "lifetime",
)


def merged_views(views: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """One view of all. The autoscaler, the SLO and changes are each model's own, and only under `models`."""
    all_views = list(views.values())
    merged: dict[str, Any] = {
        "model": ", ".join(views),
        "draining": all(view["draining"] for view in all_views),
    }
    for name in LISTS:
        merged[name] = [
            {**entry, "model": model} for model, view in views.items() for entry in view[name]
        ]
    for name in COUNTS:
        merged[name] = added([view[name] for view in all_views])
    merged["scaling"] = _scaling([view["scaling"] for view in all_views])
    merged |= {"autoscaler": {"enabled": False}, "slo": None, "changes": _changes(all_views)}
    merged["models"] = dict(views)
    return merged


def added(values: list[Any]) -> Any:
    """Numbers, or lists and objects of them, added place by place; what only some have is theirs."""
    first = values[0]
    if isinstance(first, dict):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: added([value[key] for value in values if key in value]) for key in keys}
    if isinstance(first, list):
        return [added(list(column)) for column in zip(*values, strict=True)]
    return sum(values)


def _changes(views: Iterable[dict[str, Any]]) -> list[Any]:
    return [change for view in views for change in view.get("changes", ())]


def _scaling(each: list[dict[str, Any]]) -> dict[str, Any]:
    """The launcher is the same for all."""
    lists = ("leaving", "waiting", "refused")
    return {
        "launcher": each[0]["launcher"],
        "away": each[0]["away"],
        **{name: [entry for one in each for entry in one[name]] for name in lists},
    }


def merged_audits(audits: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Balanced when every model's is."""
    each = list(audits.values())
    return {
        "balanced": all(audit["balanced"] for audit in each),
        "silent_workers": [name for audit in each for name in audit["silent_workers"]],
        "coordinator": added([audit["coordinator"] for audit in each]),
        "workers": [
            {**worker, "model": model}
            for model, audit in audits.items()
            for worker in audit["workers"]
        ],
        "models": dict(audits),
    }

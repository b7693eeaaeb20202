"""What the shipped dashboards and rules ask for: their panels, queries and the metric names in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DIRECTORY = Path(__file__).parents[1] / "deploy" / "observability"
DASHBOARDS = sorted(DIRECTORY.glob("grafana/dashboards/*.json"))
_NOT_NAMES = re.compile(r'\{[^}]*\}|\[[^\]]*\]|"[^"]*"|\b(?:by|on|group_left|without)\s*\([^)]*\)')
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\s*\()\b")
_WORDS = {"and", "or", "unless", "bool", "offset"}


def dashboard(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


def panels() -> Iterator[dict[str, Any]]:
    """Every panel that asks something."""
    for path in DASHBOARDS:
        yield from (panel for panel in dashboard(path)["panels"] if panel["type"] != "row")


def queries() -> list[tuple[str, str]]:
    """(panel, PromQL) of every dashboard."""
    return [(panel["title"], t["expr"]) for panel in panels() for t in panel["targets"]]


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((DIRECTORY / "rules.yml").read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def metric_names(expression: str) -> set[str]:
    """Names of metrics in PromQL: identifiers that are no functions, labels or keywords."""
    bare = _NOT_NAMES.sub(" ", expression)
    return {name for name in _NAME.findall(bare) if name not in _WORDS}


def filled(expression: str) -> str:
    """A dashboard's query as Grafana sends it, with everything chosen."""
    filled = expression.replace("$__rate_interval", "20s")
    return filled.replace("$instance", ".*").replace("$model", ".*")

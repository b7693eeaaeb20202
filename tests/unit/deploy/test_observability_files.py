"""The shipped dashboards and configuration are what Grafana and Prometheus take."""

from __future__ import annotations

import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observability import DASHBOARDS, DIRECTORY, dashboard, metric_names, panels, queries


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_can_be_imported(path: Path) -> None:
    read = dashboard(path)
    assert read["uid"]
    assert read["title"]
    assert read["schemaVersion"] >= 36
    assert [v["name"] for v in read["templating"]["list"]] == ["datasource", "instance", "model"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_have_ids_of_their_own(path: Path) -> None:
    numbers = [panel["id"] for panel in dashboard(path)["panels"]]
    assert len(set(numbers)) == len(numbers)


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
    apart = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    return not (beside or apart)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_fit_the_grid_and_do_not_overlap(path: Path) -> None:
    places = [panel["gridPos"] for panel in dashboard(path)["panels"]]
    assert max(place["x"] + place["w"] for place in places) == 24
    assert not any(overlap(one, other) for one, other in combinations(places, 2))


@pytest.mark.parametrize("panel", [*panels()], ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_and_asks_the_chosen_source(panel: dict[str, Any]) -> None:
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
    assert {source["uid"] for source in sources} == {"${datasource}"}
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references)


def test_metric_names_are_found_in_promql() -> None:
    promql = 'sum by (a) (rate(b_c:d{e="f"}[5m])) / on () group_left () g or vector(0)'
    assert metric_names(promql) == {"b_c:d", "g"}


def test_queries_have_metrics() -> None:
    assert all(metric_names(expression) for _, expression in queries())


@pytest.mark.parametrize("path", sorted(DIRECTORY.rglob("*.yml")), ids=lambda path: path.stem)
def test_configuration_is_yaml(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("what", [("config", "prometheus.yml"), ("rules", "rules.yml")])
def test_promtool_takes_the_configuration(what: tuple[str, str]) -> None:
    command = ["promtool", "check", what[0], what[1]]
    done = subprocess.run(command, cwd=DIRECTORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

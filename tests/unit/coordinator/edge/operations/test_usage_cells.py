"""Cells of `/usage` as CSV: what a client called its request is no formula for whoever opens the file."""

from __future__ import annotations

import csv
import io

import pytest

from coordinator.accounts.usage import UsagePage
from coordinator.edge.operations.routes_usage import _csv

FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1+1", "\r=1+1", "\n=1+1", " =1+1", "\ta")
WIDE = ("\uff1d1+1", "\uff0b1", "\uff0d1", "\uff20x")


def cell(value: object) -> str:
    told = bytes(_csv(UsagePage(("label",), [{"label": value}])).body).decode()
    (row,) = csv.DictReader(io.StringIO(told, newline=""))
    return row["label"]


@pytest.mark.parametrize("label", FORMULAS + WIDE)
def test_a_formula_is_told_as_text(label: str) -> None:
    assert cell(label) == f"'{label}"


@pytest.mark.parametrize("label", [" ", "a=1", "req-1", 'say "x", then;\ny', "1", "é"])
def test_other_texts_stand_as_they_are(label: str) -> None:
    assert cell(label) == label


def test_numbers_stay_numbers() -> None:
    assert cell(-3) == "-3"

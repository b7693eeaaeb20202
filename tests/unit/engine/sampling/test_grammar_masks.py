"""Drawing within a grammar, on the host and as a device does it; and taking an answer over at each of its tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.cuda.decode_graphs import choices_of
from engine.cuda.sampler import DeviceSampler
from engine.kv.block_pool import BlockPool
from engine.kv.sequence import Sequence
from engine.sampling.sampler import sample
from protocol.constraints import Constraint, ConstraintKind, json_schema
from protocol.sampling import SampledToken, SamplingParams
from tests.unit.engine.grammar.walks import EOS, VOCABULARY, compiler

COMPILER = compiler()
SCHEMA = json_schema(
    {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 99}, "s": {"enum": ["a", "b"]}},
        "required": ["n", "s"],
    }
)
PROMPT = [1, 2, 3]


def sequence_of(constraint: Constraint, emitted: list[int], **params: object) -> Sequence:
    """As a worker makes it that was told what was emitted."""
    sampling = SamplingParams(
        max_tokens=99,
        constraint=constraint,
        eos_token_ids=(EOS,),
        **params,  # type: ignore[arg-type]
    )
    hold = BlockPool(1).empty_hold("t")
    sequence = Sequence("r", 1, PROMPT + emitted, len(PROMPT), sampling, b"", hold)
    sequence.guide = COMPILER.guide(COMPILER.compile(constraint), sampling)
    sequence.guide.accept_all(emitted)
    return sequence


def logits_of(token_ids: list[int]) -> torch.Tensor:
    """A model's word after these tokens: what came long ago counts."""
    rng = np.random.default_rng(token_ids)
    return torch.from_numpy(rng.normal(0, 3, (1, VOCABULARY.num_rows)).astype(np.float32))


def finish(sequence: Sequence, *, on_device: bool = False) -> tuple[list[int], str | None]:
    """All output tokens, and how it ended."""
    device = DeviceSampler(torch.device("cpu"))
    while sequence.finish_reason()[0] is None:
        logits = logits_of(sequence.token_ids)
        chosen: list[SampledToken] = (
            device.choose(choices_of(logits), [sequence])
            if on_device
            else sample(logits, [sequence])
        )
        sequence.append(chosen[0])
    return list(sequence.output_token_ids), sequence.finish_reason()[0]


WAYS: list[dict[str, object]] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 1.3, "seed": 4, "top_p": 0.9, "top_k": 40, "min_p": 0.01},
    {"temperature": 1.0, "seed": 5, "repetition_penalty": 1.2, "frequency_penalty": 0.5},
    {"temperature": 1.0, "seed": 6, "logprobs": 3, "logit_bias": {48: 5.0, EOS: 100.0}},
    {"temperature": 1.0, "seed": 7, "min_tokens": 60, "ignore_eos": True},
    {"temperature": 1.0, "seed": 8, "stop_token_ids": (257,), "min_tokens": 4},
]


@pytest.mark.parametrize("way", WAYS)
def test_whoever_takes_over_at_any_token_says_the_same(way: dict[str, object]) -> None:
    whole, end = finish(sequence_of(SCHEMA, [], **way))
    assert end == "stop"
    for place in range(len(whole)):
        assert finish(sequence_of(SCHEMA, whole[:place], **way)) == (whole, end), place


@pytest.mark.parametrize("way", WAYS)
def test_the_devices_way_says_the_same(way: dict[str, object]) -> None:
    host = finish(sequence_of(SCHEMA, [], **way))
    assert finish(sequence_of(SCHEMA, [], **way), on_device=True) == host


@pytest.mark.parametrize("on_device", [False, True])
def test_rows_with_and_without_a_grammar_go_together(*, on_device: bool) -> None:
    free = sequence_of(SCHEMA, [], temperature=0.0)
    free.guide = None
    bound = sequence_of(SCHEMA, [], temperature=0.0)
    logits = torch.zeros(2, VOCABULARY.num_rows)
    logits[:, ord("x")] = 5.0
    rows = [free, bound]
    chosen = (
        DeviceSampler(torch.device("cpu")).choose(choices_of(logits), rows)
        if on_device
        else sample(logits, rows)
    )
    assert chosen[0].token_id == ord("x")
    assert VOCABULARY.spelled[chosen[1].token_id].startswith(b"{")


def test_what_a_grammar_forbids_has_no_log_probability() -> None:
    sequence = sequence_of(
        Constraint(kind=ConstraintKind.REGEX, text="[xy]z"), [], temperature=0.0, logprobs=20
    )
    [token] = sample(torch.zeros(1, VOCABULARY.num_rows), [sequence])
    assert token.logprob is not None
    assert sorted(token_id for token_id, _ in token.logprob.top) == [ord("x"), ord("y")]
    assert token.logprob.logprob == pytest.approx(-np.log(2))


def test_an_end_that_is_to_be_ignored_comes_only_when_nothing_else_may() -> None:
    few = Constraint(kind=ConstraintKind.REGEX, text="a{0,5}")
    tokens, end = finish(sequence_of(few, [], temperature=1.0, seed=1, ignore_eos=True))
    assert (bytes(tokens), end) == (b"aaaaa", "stop")
    tokens, end = finish(sequence_of(few, [], temperature=1.0, seed=1, min_tokens=4))
    assert bytes(tokens[:4]) == b"aaaa"
    assert end == "stop"

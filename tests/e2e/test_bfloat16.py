"""bfloat16: the pools give the colocated tokens, or part from them only at a near tie."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.server import Server
from tests.marks import deep

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
EPSILON = 0.25
"""Top-2 margin, in logits, below which bfloat16 rounding may decide: two steps of a value near 16."""
QUESTIONS = [
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about the sea.",
    "What is two plus two?",
    "Who wrote Hamlet?",
    "Explain gravity to a child.",
    "List the days of the week.",
    "What do bees make?",
    "Why is the sky blue?",
    "Give me a recipe for pancakes.",
]


def answer(server: Server, question: str) -> list[dict[str, Any]]:
    """Per token: `token`, and `top_logprobs` of the best two."""
    reply = server.chat(
        model="smollm2-135m",
        messages=[{"role": "user", "content": question}],
        max_tokens=48,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    content: list[dict[str, Any]] = reply["choices"][0]["logprobs"]["content"]
    return content


def answers(pools: str, count: int) -> list[list[dict[str, Any]]]:
    with Server("--pd", pools, "--dtype", "bfloat16", "--kv-cache-memory", "512MiB") as server:
        return [answer(server, question) for question in QUESTIONS[:count]]


def margin_at_first_difference(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]]
) -> float | None:
    """None when the texts are equal."""
    for one, other in zip(ours, theirs, strict=False):
        if one["token"] != other["token"]:
            first, second = (entry["logprob"] for entry in other["top_logprobs"])
            return float(first - second)
    return None if len(ours) == len(theirs) else float("inf")


@pytest.mark.parametrize("count", [4, deep(10)])
def test_pooled_equals_colocated_but_for_near_ties(count: int, record_property: Any) -> None:
    colocated, pooled = answers("0p1d", count), answers("1p1d", count)
    margins = [margin_at_first_difference(p, c) for p, c in zip(pooled, colocated, strict=True)]
    differing = [margin for margin in margins if margin is not None]
    record_property("differing", len(differing))
    print(f"{len(differing)} of {count} answers differ, at margins {differing}")
    assert all(margin < EPSILON for margin in differing)
    assert len(differing) <= count // 2


def test_conversation_over_several_turns_makes_sense() -> None:
    with Server("--pd", "1p1d", "--dtype", "bfloat16", "--kv-cache-memory", "512MiB") as server:
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        cached = []
        for follow_up in ("And what is the capital of Italy?", "Thank you!", ""):
            reply = server.chat(
                model="smollm2-135m", messages=messages, max_tokens=48, temperature=0
            )
            text = reply["choices"][0]["message"]["content"]
            cached.append(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
            messages += [{"role": "assistant", "content": text}]
            messages += [{"role": "user", "content": follow_up}]
        said = [message["content"] for message in messages if message["role"] == "assistant"]
        assert "Paris" in said[0]
        assert "Rome" in said[1]
        assert cached[0] < cached[1] <= cached[2]
